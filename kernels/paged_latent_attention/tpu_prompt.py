"""The decompressed form in Pallas for TPU: prompts, whose rows are many enough to share the keys and values made of each latent.

A tile of the batch's rows may hold rows of several requests. The grid goes over blocks of heads and over *pairs* of a tile and a request
with rows in it; how many there are is known at run time. A pair reads the latents of its request a block at a time, makes each head's
keys and values of them, and multiplies the parts of the tile that see some of these keys. Pairs of a tile follow each other, and share
the state of its online softmax, whose rows are those of no other pair.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..paged_attention.tpu_batch import Meaning, Scalar
from ..paged_attention.tpu_pairs import Pairs
from ..paged_attention.tpu_softmax import FAR, lanes
from .tuning import PromptBlocks


def attend(
    tables: Array, pairs: Pairs, position: Array, query: Array, w_uk: Array, w_uv: Array, kv_cache: Array, meaning: Meaning,
    blocks: PromptBlocks,
) -> Array:  # fmt: skip
    """Rows [N, T, V] of the pairs' requests; others may be anything. tables [R, pages]; position [pairs]: in its context, of a pair's first
    row; query [N, T, P + R]; the cache has the latents of this step."""
    heads, tokens, size = query.shape
    (_, nope, latent), value = w_uk.shape, w_uv.shape[2]
    dtype = query.dtype
    table = tables.shape[1]
    by_row = (blocks.heads, blocks.rows)

    def of_tile(head: Any, pair: Any, tables: Any, request: Any, tile: Any, *_: Any) -> tuple[Any, Any, int]:
        return head, tile[pair], 0

    def of_head(head: Any, *_: Any) -> tuple[Any, int, int]:
        return head, 0, 0

    return pl.pallas_call(
        partial(_kernel, table=table, meaning=meaning, blocks=blocks),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=6,
            grid=(heads // blocks.heads, pairs.total),
            in_specs=[
                pl.BlockSpec((*by_row, size), of_tile),
                pl.BlockSpec((blocks.heads, nope, latent), of_head),
                pl.BlockSpec((blocks.heads, latent, value), of_head),
                pl.BlockSpec(memory_space=pl.ANY),
            ],
            out_specs=pl.BlockSpec((*by_row, value), of_tile),
            scratch_shapes=[
                pltpu.VMEM((2, blocks.keys, kv_cache.shape[2]), dtype),
                pltpu.VMEM((blocks.keys, size), dtype),
                pltpu.VMEM((blocks.keys, value), dtype),
                pltpu.VMEM((*by_row, 128), jnp.float32),
                pltpu.VMEM((*by_row, 128), jnp.float32),
                pltpu.VMEM((*by_row, value), jnp.float32),
                pltpu.SemaphoreType.DMA((2,)),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct((heads, tokens, value), dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=blocks.vmem * 5 // 4, disable_bounds_checks=True
        ),
        name="latent_prompts",
    )(tables.reshape(-1), *pairs[:4], position, query, w_uk, w_uv, kv_cache)  # fmt: skip


def _kernel(
    tables: Any, request: Any, tile: Any, begin: Any, end: Any, position: Any, query: Any, w_uk: Any, w_uv: Any, cache: Any, output: Any,
    pages: Any, keys: Any, values: Any, highest: Any, total: Any, sums: Any, here: Any, *, table: int, meaning: Meaning, blocks: PromptBlocks,
) -> None:  # fmt: skip
    pair, pairs = pl.program_id(1), pl.num_programs(1)
    fresh = (pair == 0) | (tile[pair] != tile[jnp.maximum(pair - 1, 0)])
    last = (pair == pairs - 1) | (tile[pair] != tile[jnp.minimum(pair + 1, pairs - 1)])

    @pl.when(fresh)
    def _() -> None:
        highest[...] = jnp.full(highest.shape, FAR, jnp.float32)
        total[...] = jnp.zeros(total.shape, jnp.float32)
        sums[...] = jnp.zeros(sums.shape, jnp.float32)

    of = _Pair(
        tables, cache, query, w_uk, w_uv, pages, keys, values, highest, total, sums, here,
        request[pair], begin[pair], end[pair], position[pair], table, meaning, blocks,
    )  # fmt: skip
    of.run()

    @pl.when(last)
    def _() -> None:
        for head in range(blocks.heads):
            weight = total[head]
            result = sums[head] / lanes(jnp.where(weight > 0, weight, 1.0), sums.shape[2])
            output[head] = result.astype(output.dtype)


class _Pair(NamedTuple):
    """One pair's request over its rows [begin, end) of the tile, for a block of heads."""

    tables: Any
    cache: Any
    query: Any  # [heads, rows, P + R]
    w_uk: Any  # [heads, P, L]
    w_uv: Any  # [heads, L, V]
    pages: Any  # [2, keys, L + R]
    keys: Any  # [keys, P + R], of one head
    values: Any  # [keys, V]
    highest: Any  # [heads, rows, 128], all lanes alike
    total: Any
    sums: Any  # [heads, rows, V]
    here: Any
    request: Scalar
    begin: Scalar
    end: Scalar
    position: Scalar
    table: int
    meaning: Meaning
    blocks: PromptBlocks

    def run(self) -> None:
        end_key = jnp.clip(self.position + self.end - self.begin, 0, self.table * self.cache.shape[1])
        window = self.meaning.sliding_window
        first_page = (jnp.maximum(self.position - window + 1, 0) if window > 0 else 0) // self.cache.shape[1]
        first_key = first_page * self.cache.shape[1]
        count = jnp.where(self.end > self.begin, pl.cdiv(end_key - first_key, self.blocks.keys), 0)
        pl.when(count > 0)(lambda: self.fetch(0, first_page))

        @pl.loop(0, count)
        def _(block: Scalar) -> None:
            pl.when(block + 1 < count)(lambda: self.fetch(block + 1, first_page))
            at, start = block % 2, first_key + block * self.blocks.keys
            arrived = self.pages.at[at]
            pltpu.make_async_copy(arrived, arrived, self.here.at[at]).wait()
            pl.when(end_key - start < self.blocks.keys)(lambda: self.clear(at, end_key - start))
            pl.loop(0, self.blocks.heads)(lambda head: self.head(head, at, start))

    def fetch(self, block: Scalar, first_page: Scalar) -> None:
        """Starts the copies of a block's pages: always all of them, so that one wait is for all."""
        pages, size = self.blocks.keys // self.cache.shape[1], self.cache.shape[1]

        @pl.loop(0, pages)
        def _(page: Scalar) -> None:
            inside = jnp.minimum(first_page + block * pages + page, self.table - 1)
            place = jnp.clip(self.tables[self.request * self.table + inside], 0, self.cache.shape[0] - 1)
            into = self.pages.at[block % 2, pl.ds(page * size, size)]
            pltpu.make_async_copy(self.cache.at[place], into, self.here.at[block % 2]).start()

    def clear(self, at: Scalar, count: Scalar) -> None:
        """Zeroes the block's keys from `count` on: they may be NaN, and 0 * NaN is not 0."""
        block = self.pages[at].astype(jnp.float32)
        row = lax.broadcasted_iota(jnp.int32, block.shape, 0)
        self.pages[at] = jnp.where(row < count, block, 0.0).astype(self.pages.dtype)

    def head(self, head: Scalar, at: Scalar, start: Scalar) -> None:
        """Attends to the block's keys, the first of which is `start` of the context, with one head."""
        nope, latent = self.w_uk.shape[1:]
        block = self.pages[at]
        made = _product(block[:, :latent], self.w_uk[head], 1)
        self.keys[:, :nope] = made.astype(self.keys.dtype)
        self.keys[:, nope:] = block[:, latent:]
        self.values[...] = _product(block[:, :latent], self.w_uv[head], 0).astype(self.values.dtype)
        size = self.blocks.part
        sees = self.begin + jnp.maximum(start - self.position, 0)  # the first row that sees a key of the block

        @pl.loop(sees // size, pl.cdiv(self.end, size))
        def _(part: Array) -> None:
            first = part * size
            ahead = start - self.position + self.begin - first  # the first key is so many positions after the first row
            whole = (first >= self.begin) & (first + size <= self.end) & (ahead + self.blocks.keys <= 1)
            if self.meaning.sliding_window > 0:
                whole = whole & (size - ahead <= self.meaning.sliding_window)
            rows = pl.ds(pl.multiple_of(first, size), size)
            pl.when(whole)(lambda: self.part(head, rows, None))
            pl.when(~whole)(lambda: self.part(head, rows, self.seen(first, ahead)))

    def seen(self, first: Scalar, ahead: Scalar) -> Array:
        """Which keys of the block the rows of the part see, which begins with row `first`: bool [part, keys]."""
        shape = (self.blocks.part, self.blocks.keys)
        row = lax.broadcasted_iota(jnp.int32, shape, 0)
        distance = ahead + lax.broadcasted_iota(jnp.int32, shape, 1) - row
        seen = (distance <= 0) & (row >= self.begin - first) & (row < self.end - first)
        return seen & (distance > -self.meaning.sliding_window) if self.meaning.sliding_window > 0 else seen

    def part(self, head: Scalar, rows: Any, seen: Array | None) -> None:
        """One step of the online softmax of some rows."""
        scores = _product(self.query[head, rows], self.keys[...], 1) * self.meaning.scale
        if seen is not None:
            scores = jnp.where(seen, scores, -jnp.inf)
        before = self.highest[head, rows]
        highest = jnp.maximum(before, scores.max(axis=1, keepdims=True))
        powers = jnp.exp(scores - lanes(highest, scores.shape[1]))
        shrink = jnp.exp(before - highest)
        self.highest[head, rows] = highest
        self.total[head, rows] = shrink * self.total[head, rows] + powers.sum(axis=1, keepdims=True)
        found = _product(powers.astype(self.values.dtype), self.values[...], 0)
        self.sums[head, rows] = lanes(shrink, found.shape[1]) * self.sums[head, rows] + found


def _product(rows: Array, others: Array, axis: int) -> Array:
    """rows [M, K] times `others`, whose `axis` is K, in float32."""
    precision = lax.Precision.HIGHEST if rows.dtype == jnp.float32 else None
    return lax.dot_general(
        rows, others, (((1,), (axis,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
    )
