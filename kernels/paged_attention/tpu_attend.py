"""The reading half of `fxhlo.ragged_paged_attention` on TPU, one Pallas kernel.

One loop over blocks of keys: request by request, tile of query rows by tile, the pages of the next block on their way
while one is computed, with an online softmax in float32 (Milakov and Gimelshein 2018; Dao 2023, FlashAttention-2; Kwon et
al. 2023, PagedAttention). Only pages that some row of the tile sees are read, and only rows of requests are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .tuning import Blocks

FAR = -1e30
"""Below any score and finite: where the running maximum starts, so that masked scores (-inf) weigh nothing."""
ROWS_TOGETHER = 64
"""Rows of scores in work at a time, over KV heads."""
ANYWHERE = pl.BlockSpec(memory_space=pl.ANY)


@dataclass(frozen=True)
class Meaning:
    """What is computed: the composite's attributes, and the optional operands that are there, each with its size:
    "sinks", "slopes", "k", "v". Their numbers lie in one array, in this order."""

    scale: float
    sliding_window: int
    soft_cap: float
    numbers: tuple[tuple[str, int], ...]

    def first(self, name: str) -> int | None:
        """Where the numbers of an optional operand begin; None where it is absent."""
        names = [each for each, _ in self.numbers]
        return sum(size for _, size in self.numbers[: names.index(name)]) if name in names else None


@dataclass(frozen=True)
class Refs:
    """The kernel's memory. SMEM: tables [R * P], lengths [R], starts [R + 1], numbers per head. HBM: query, cache
    and output. The rest is scratch in VMEM, with two of what is copied while another is computed."""

    tables: Any
    lengths: Any
    starts: Any
    per_head: Any
    query: Any
    cache: Any
    output: Any
    pages: Any  # [2, keys, 2 * Hkv, D], as they lie in the cache
    by_head: Any  # [2 * Hkv, chunk, D], the chunk of them that is computed
    tiles_in: Any  # [2, tile, Hq, D]
    queries: Any  # [Hkv, rows, D]; row: head in its group, then token
    tiles_out: Any  # [2, tile, Hq, D]
    highest: Any  # [Hkv, rows, 128], all lanes alike
    total: Any  # [Hkv, rows, 128], all lanes alike
    sums: Any  # [Hkv, rows, D]
    pages_here: Any  # semaphores [2]
    tile_here: Any
    tile_gone: Any
    leaving: Any  # SMEM [2]: rows of the output tile that is being copied out


class Place(NamedTuple):
    """Where the loop stands: a request, a tile of its rows, a block of the keys that the tile sees; which of the two
    buffers has the block, and which the tile."""

    request: Any
    tile: Any
    block: Any
    pages_at: Any
    tile_at: Any


class Span(NamedTuple):
    """A tile's rows, `first` in the batch and `count` of them, the context position of its first, and its keys."""

    first: Any
    count: Any
    position: Any
    first_page: Any
    end_key: Any
    blocks: Any


def attend(scalars: tuple, query: Any, kv_cache: Any, meaning: Meaning, blocks: Blocks, cores: int) -> Any:
    """The attended rows [T, Hq, D]. scalars: block_tables, seq_lens, query_start_loc, numbers per head."""
    _, heads, head_size = query.shape
    pairs = kv_cache.shape[2]
    by_row = (pairs // 2, blocks.rows)
    compute = jnp.dtype(blocks.compute)
    tile = pltpu.VMEM((2, blocks.tile, heads, head_size), query.dtype)
    two = pltpu.SemaphoreType.DMA((2,))

    def kernel(*refs: Any) -> None:
        Kernel(Refs(*refs), meaning, blocks, cores).run()

    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars), grid=(cores,), in_specs=[ANYWHERE, ANYWHERE], out_specs=ANYWHERE,
            scratch_shapes=[
                pltpu.VMEM((2, blocks.keys, pairs, head_size), kv_cache.dtype),
                pltpu.VMEM((pairs, blocks.chunk, head_size), compute),
                tile,
                pltpu.VMEM((*by_row, head_size), compute),
                tile,
                pltpu.VMEM((*by_row, 128), jnp.float32),
                pltpu.VMEM((*by_row, 128), jnp.float32),
                pltpu.VMEM((*by_row, head_size), jnp.float32),
                two, two, two, pltpu.SMEM((2,), jnp.int32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct(query.shape, query.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=blocks.vmem * 5 // 4, disable_bounds_checks=True
        ),
        name="paged_attention",
    )(*scalars, query, kv_cache)  # fmt: skip


class Kernel:
    def __init__(self, refs: Refs, meaning: Meaning, blocks: Blocks, cores: int) -> None:
        self.refs, self.meaning, self.blocks, self.cores = refs, meaning, blocks, cores
        self.tokens, self.heads, self.head_size = refs.query.shape
        self.page_count, self.block_size, pairs, _ = refs.cache.shape
        self.kv_heads = pairs // 2
        self.groups = self.heads // self.kv_heads
        self.requests = refs.lengths.shape[0]
        self.table = refs.tables.shape[0] // self.requests
        self.pages = blocks.keys // self.block_size
        low = refs.pages.dtype == jnp.bfloat16 and blocks.compute == "bfloat16"
        self.strided = low and self.head_size == 128 and self.kv_heads in (1, 2, 4, 8)

    def run(self) -> None:
        refs, core = self.refs, pl.program_id(0)
        for at in range(2):
            refs.leaving[at] = 0
        start = Place(self.with_rows(core), *(jnp.int32(0),) * 4)

        @pl.when(start.request < self.requests)
        def _() -> None:
            self.fetch_tile(start)
            self.fetch_pages(start)

        jax.lax.while_loop(lambda place: place.request < self.requests, self.step, start)
        for at in range(2):
            self.wait_output(at)

        @pl.when(core == 0)
        def _() -> None:
            self.clear_padding()

    def step(self, place: Place) -> Place:
        """One block of keys for one tile of rows."""
        span = self.span(place.request, place.tile)
        last = place.block + 1 == span.blocks
        following = self.next(place, span, last)

        @pl.when(following.request < self.requests)
        def _() -> None:
            @pl.when(last)
            def _() -> None:
                self.fetch_tile(following)

            self.fetch_pages(following)

        self.each_page(place, lambda copy: copy.wait())
        alone = self.rows_of(place.request) == 1
        pl.when(alone)(lambda: self.compute(place, span, last, 1))
        if self.blocks.tile > 1:
            pl.when(~alone)(lambda: self.compute(place, span, last, self.blocks.tile))
        return following

    # ---- which rows and keys

    def with_rows(self, request: Any) -> Any:
        """The first request of this core, from `request` on, that has rows."""

        def empty(request: Any) -> Any:
            inside = jnp.minimum(request, self.requests - 1)
            return (request < self.requests) & (self.rows_of(inside) <= 0)

        return jax.lax.while_loop(empty, lambda request: request + self.cores, request)

    def rows_of(self, request: Any) -> Any:
        return self.refs.starts[request + 1] - self.refs.starts[request]

    def span(self, request: Any, tile: Any) -> Span:
        refs, rows = self.refs, self.rows_of(request)
        before = tile * self.blocks.tile
        count = jnp.minimum(rows - before, self.blocks.tile)
        position = refs.lengths[request] - rows + before
        end_key = jnp.clip(position + count, 0, self.table * self.block_size)
        first_key = jnp.maximum(position - self.meaning.sliding_window + 1, 0) if self.meaning.sliding_window > 0 else 0
        first_page = jnp.minimum(first_key, end_key) // self.block_size
        blocks = jnp.maximum(pl.cdiv(end_key - first_page * self.block_size, self.blocks.keys), 1)
        return Span(refs.starts[request] + before, count, position, first_page, end_key, blocks)

    def next(self, place: Place, span: Span, last: Any) -> Place:
        done = last & ((place.tile + 1) * self.blocks.tile >= self.rows_of(place.request))
        return Place(
            jax.lax.cond(done, lambda: self.with_rows(place.request + self.cores), lambda: place.request),
            jnp.where(done, 0, jnp.where(last, place.tile + 1, place.tile)),
            jnp.where(last, 0, place.block + 1),
            1 - place.pages_at,
            jnp.where(last, 1 - place.tile_at, place.tile_at),
        )

    # ---- copies

    def each_page(self, place: Place, act: Callable[[Any], None]) -> None:
        refs, span = self.refs, self.span(place.request, place.tile)
        first = span.first_page + place.block * self.pages
        count = jnp.clip(pl.cdiv(span.end_key, self.block_size) - first, 0, self.pages)

        @pl.loop(0, count)
        def _(page: Any) -> None:
            block = jnp.clip(refs.tables[place.request * self.table + first + page], 0, self.page_count - 1)
            into = refs.pages.at[place.pages_at, pl.ds(page * self.block_size, self.block_size)]
            act(pltpu.make_async_copy(refs.cache.at[block], into, refs.pages_here.at[place.pages_at]))

    def fetch_pages(self, place: Place) -> None:
        self.each_page(place, lambda copy: copy.start())

    def each_part(self, count: Any, act: Callable[[Any, int], None]) -> None:
        """`count` rows in parts of static size: act(first, size)."""
        size = 1 << (min(self.blocks.tile, self.tokens).bit_length() - 1)
        while size:
            first = count & ~(2 * size - 1)
            pl.when((count & size) != 0)(partial(act, first, size))
            size //= 2

    def each_tile_part(self, place: Place, act: Callable[[Any], None]) -> None:
        refs, span = self.refs, self.span(place.request, place.tile)

        def part(first: Any, size: int) -> None:
            rows = refs.query.at[pl.ds(span.first + first, size)]
            into = refs.tiles_in.at[place.tile_at, pl.ds(first, size)]
            act(pltpu.make_async_copy(rows, into, refs.tile_here.at[place.tile_at]))

        self.each_part(span.count, part)

    def fetch_tile(self, place: Place) -> None:
        self.each_tile_part(place, lambda copy: copy.start())

    def output_part(self, at: Any, into: Any, first: Any, size: int) -> Any:
        rows = self.refs.tiles_out.at[at, pl.ds(first, size)]
        return pltpu.make_async_copy(rows, self.refs.output.at[pl.ds(into, size)], self.refs.tile_gone.at[at])

    def wait_output(self, at: Any) -> None:
        """Until the output buffer `at` may be written: a copy's semaphore counts bytes, so any rows of its size will do."""
        self.each_part(self.refs.leaving[at], lambda first, size: self.output_part(at, 0, first, size).wait())
        self.refs.leaving[at] = 0

    def clear_padding(self) -> None:
        """Zeros into the rows after the last request's."""
        refs, tile = self.refs, self.blocks.tile
        first = jnp.clip(refs.starts[self.requests], 0, self.tokens)
        refs.tiles_out[0] = jnp.zeros(refs.tiles_out.shape[1:], refs.tiles_out.dtype)

        def each(act: Callable[[Any], None]) -> None:
            @pl.loop(0, pl.cdiv(self.tokens - first, tile))
            def _(number: Any) -> None:
                start = first + number * tile
                count = jnp.minimum(self.tokens - start, tile)
                self.each_part(count, lambda at, size: act(self.output_part(0, start + at, at, size)))

        each(lambda copy: copy.start())
        each(lambda copy: copy.wait())

    # ---- arithmetic

    def compute(self, place: Place, span: Span, last: Any, tile: int) -> None:
        """The block's keys for a tile of `tile` rows at most."""
        pl.when(place.block == 0)(lambda: self.begin(place, tile))
        first_key = span.first_page * self.block_size + place.block * self.blocks.keys
        keys = jnp.minimum(span.end_key - first_key, self.blocks.keys)
        chunks = pl.cdiv(keys, self.blocks.chunk)

        @pl.loop(keys, chunks * self.blocks.chunk)
        def _(key: Any) -> None:  # what was here before may be NaN, and 0 * NaN is not 0
            self.refs.pages[place.pages_at, key] = jnp.zeros(self.refs.pages.shape[2:], self.refs.pages.dtype)

        @pl.loop(0, chunks)
        def _(chunk: Any) -> None:
            at = pl.multiple_of(chunk * self.blocks.chunk, self.blocks.chunk)
            self.chunk(place.pages_at, at, first_key + at - span.position, tile)

        pl.when(last)(lambda: self.finish(place, span, tile))

    def begin(self, place: Place, tile: int) -> None:
        """A new tile: its queries sorted by KV head, and an empty softmax."""
        refs, sinks = self.refs, self.meaning.first("sinks")
        self.each_tile_part(place, lambda copy: copy.wait())
        rows = slice(0, self.groups * tile)
        tokens = refs.tiles_in[place.tile_at, 0:tile]
        queries = tokens[0] if tile == 1 else jnp.swapaxes(tokens, 0, 1)
        refs.queries[:, rows] = queries.reshape(self.kv_heads, self.groups * tile, self.head_size).astype(
            refs.queries.dtype
        )
        for head in range(self.kv_heads):
            shape = (self.groups * tile, 128)
            highest = jnp.full((1, 1), FAR, jnp.float32) if sinks is None else self.row_values(sinks, head, tile)
            refs.highest[head, rows] = jnp.broadcast_to(highest, shape)
            refs.total[head, rows] = jnp.full(shape, 0.0 if sinks is None else 1.0, jnp.float32)
        refs.sums[:, rows] = jnp.zeros((self.kv_heads, self.groups * tile, self.head_size), jnp.float32)

    def row_values(self, first: int, head: Any, tile: int) -> Any:
        """Numbers per query head, from `first` on, as a column [rows, 1] for the rows of one KV head."""
        group = jax.lax.broadcasted_iota(jnp.int32, (self.groups * tile, 1), 0) // tile
        at = first + head * self.groups
        column = jnp.full(group.shape, self.refs.per_head[at], jnp.float32)
        for number in range(1, self.groups):
            column = jnp.where(group == number, self.refs.per_head[at + number], column)
        return column

    def chunk(self, pages_at: Any, at: Any, ahead: Any, tile: int) -> None:
        """Keys [at, at + chunk) of the block for all heads; the first is `ahead` positions after the tile's first row."""
        refs, meaning = self.refs, self.meaning
        size, rows = self.blocks.chunk, self.groups * tile
        if not self.strided:
            refs.by_head[...] = jnp.swapaxes(refs.pages[pages_at, pl.ds(at, size)].astype(refs.by_head.dtype), 0, 1)
        distance = ahead + jax.lax.broadcasted_iota(jnp.int32, (rows, size), 1)
        if tile > 1:
            distance -= jax.lax.broadcasted_iota(jnp.int32, (rows, size), 0) % tile
        seen = distance <= 0
        if meaning.sliding_window > 0:
            seen &= distance > -meaning.sliding_window
        together = self.heads_together(rows)

        def some(number: Any) -> None:
            keys, values = self.keys_and_values(pages_at, at, number * together, together)
            self.some_heads(number * together, keys, values, distance, seen, tile)

        if self.strided:  # the first row of a strided load must be known to be aligned
            for number in range(self.kv_heads // together):
                some(number)
        else:
            pl.loop(0, self.kv_heads // together)(some)

    def heads_together(self, rows: int) -> int:
        """KV heads computed side by side, so that one head's products fill the other's waiting."""
        fitting = max(1, ROWS_TOGETHER // (-(-rows // 8) * 8))
        return max(count for count in range(1, self.kv_heads + 1) if self.kv_heads % count == 0 and count <= fitting)

    def keys_and_values(self, pages_at: Any, at: Any, first: Any, count: int) -> tuple[Any, Any]:
        """Of `count` KV heads from `first` on, each [count, chunk, D].

        A key and a value of 16 bits lie in one word of 32, the words of a head `kv_heads` rows apart.
        """
        refs, size = self.refs, self.blocks.chunk
        if not self.strided:
            pairs = refs.by_head[pl.ds(2 * first, 2 * count)].reshape(count, 2, size, self.head_size)
            return pairs[:, 0], pairs[:, 1]
        words = refs.pages.at[pages_at, pl.ds(at, size)].bitcast(jnp.uint32)
        words = words.reshape(size * self.kv_heads, self.head_size)
        both = jnp.stack([words[pl.ds(first + head, size, stride=self.kv_heads), :] for head in range(count)])
        halves = (both << 16, both & jnp.uint32(0xFFFF0000))
        keys, values = (pltpu.bitcast(half, jnp.float32).astype(jnp.bfloat16) for half in halves)
        return keys, values

    def some_heads(self, first: Any, keys: Any, values: Any, distance: Any, seen: Any, tile: int) -> None:
        """A step of the online softmax for the KV heads from `first` on that keys and values are of."""
        refs, meaning, rows, count = self.refs, self.meaning, slice(0, self.groups * tile), keys.shape[0]
        product = partial(
            jax.lax.dot_general, preferred_element_type=jnp.float32,
            precision=jax.lax.Precision.HIGHEST if keys.dtype == jnp.float32 else None,
        )  # fmt: skip
        heads = pl.ds(first, count)
        scores = product(refs.queries[heads, rows], keys, (((2,), (2,)), ((0,), (0,))))
        k_scale, slopes = meaning.first("k"), meaning.first("slopes")
        if k_scale is not None:
            scores = jnp.stack([scores[head] * refs.per_head[k_scale + first + head] for head in range(count)])
        scores *= meaning.scale
        if meaning.soft_cap > 0:
            scores = meaning.soft_cap * jnp.tanh(scores / meaning.soft_cap)
        if slopes is not None:
            steep = jnp.stack([self.row_values(slopes, first + head, tile) for head in range(count)])
            scores += steep * distance.astype(jnp.float32)
        scores = jnp.where(seen, scores, -jnp.inf)
        before = refs.highest[heads, rows]
        highest = jnp.maximum(before, scores.max(axis=2, keepdims=True))
        powers = jnp.exp(scores - _lanes(highest, self.blocks.chunk))
        shrink = jnp.exp(before - highest)
        refs.highest[heads, rows] = highest
        refs.total[heads, rows] = shrink * refs.total[heads, rows] + powers.sum(axis=2, keepdims=True)
        found = product(powers.astype(values.dtype), values, (((2,), (1,)), ((0,), (0,))))
        refs.sums[heads, rows] = _lanes(shrink, self.head_size) * refs.sums[heads, rows] + found

    def finish(self, place: Place, span: Span, tile: int) -> None:
        """The tile's output, and its copy on the way."""
        refs, rows = self.refs, self.groups * tile
        self.wait_output(place.tile_at)
        total = refs.total[:, 0:rows, 0:1]
        result = refs.sums[:, 0:rows] / jnp.where(total > 0, total, 1.0)
        v_scale = self.meaning.first("v")
        if v_scale is not None:
            result = jnp.stack([result[head] * refs.per_head[v_scale + head] for head in range(self.kv_heads)])
        result = result.astype(refs.tiles_out.dtype)
        result = result.reshape(self.heads, tile, self.head_size) if tile > 1 else result.reshape(1, self.heads, -1)
        refs.tiles_out[place.tile_at, 0:tile] = jnp.swapaxes(result, 0, 1) if tile > 1 else result
        self.each_part(
            span.count, lambda first, size: self.output_part(place.tile_at, span.first + first, first, size).start()
        )
        refs.leaving[place.tile_at] = span.count


def _lanes(alike: Any, width: int) -> Any:
    """[..., 128], all lanes alike, as [..., width]: registers repeated, nothing moved across lanes."""
    return jnp.concatenate([alike] * -(-width // 128), axis=-1)[..., :width]
