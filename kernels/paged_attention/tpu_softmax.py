"""Arithmetic of the TPU attention kernel: an online softmax over a block of keys, for a tile of rows."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .tpu_batch import Batch, Place, Scalar, Span
from .tpu_copies import Copies

FAR = -1e30
"""Initial running maximum: below any score, and finite, so that masked scores (-inf) get weight 0."""
ROWS_TOGETHER = 64
"""Score rows processed together, over all KV heads."""


class Softmax:
    """The state of the online softmax of one tile, in vector memory (`Refs.highest`, `total` and `sums`)."""

    def __init__(self, batch: Batch, copies: Copies) -> None:
        self.batch, self.copies, self.refs = batch, copies, batch.refs
        low = self.refs.pages.dtype == jnp.bfloat16 and batch.blocks.compute == "bfloat16"
        self.strided = low and batch.head_size == 128 and batch.kv_heads in (1, 2, 4, 8)

    def compute(self, place: Place, span: Span, last: Scalar, tile: int) -> None:
        """Processes the block's keys for a tile of at most `tile` rows."""
        pl.when(place.block == 0)(lambda: self.begin(place, tile))
        first_key = span.first_page * self.batch.block_size + place.block * self.batch.blocks.keys
        keys = jnp.minimum(span.end_key - first_key, self.batch.blocks.keys)
        chunks = pl.cdiv(keys, self.batch.blocks.chunk)

        @pl.loop(keys, chunks * self.batch.blocks.chunk)
        def _(key: Scalar) -> None:  # stale data may be NaN, and 0 * NaN is not 0
            self.refs.pages[place.pages_at, key] = jnp.zeros(self.refs.pages.shape[2:], self.refs.pages.dtype)

        @pl.loop(0, chunks)
        def _(chunk: Array) -> None:
            at = pl.multiple_of(chunk * self.batch.blocks.chunk, self.batch.blocks.chunk)
            self.chunk(place.pages_at, at, first_key + at - span.position, span.position, tile)

        pl.when(last)(lambda: self.finish(place, span, tile))

    def begin(self, place: Place, tile: int) -> None:
        """Starts a tile: sorts its queries by KV head and resets the softmax state."""
        refs, sinks = self.refs, self.batch.meaning.first("sinks")
        self.copies.each_tile_part(place, lambda copy: copy.wait())
        rows = slice(0, self.batch.groups * tile)
        tokens = refs.tiles_in[place.tile_at, 0:tile]
        queries = tokens[0] if tile == 1 else jnp.swapaxes(tokens, 0, 1)
        refs.queries[:, rows] = queries.reshape(
            self.batch.kv_heads, self.batch.groups * tile, self.batch.head_size
        ).astype(refs.queries.dtype)
        for head in range(self.batch.kv_heads):
            shape = (self.batch.groups * tile, 128)
            highest = jnp.full((1, 1), FAR, jnp.float32) if sinks is None else self.row_values(sinks, head, tile)
            refs.highest[head, rows] = jnp.broadcast_to(highest, shape)
            refs.total[head, rows] = jnp.full(shape, 0.0 if sinks is None else 1.0, jnp.float32)
        refs.sums[:, rows] = jnp.zeros(
            (self.batch.kv_heads, self.batch.groups * tile, self.batch.head_size), jnp.float32
        )

    def row_values(self, first: int, head: Scalar, tile: int) -> Array:
        """Per-query-head numbers, at offset `first`, as a column [rows, 1] for the rows of one KV head."""
        group = jax.lax.broadcasted_iota(jnp.int32, (self.batch.groups * tile, 1), 0) // tile
        at = first + head * self.batch.groups
        column = jnp.full(group.shape, self.refs.per_head[at], jnp.float32)
        for number in range(1, self.batch.groups):
            column = jnp.where(group == number, self.refs.per_head[at + number], column)
        return column

    def chunk(self, pages_at: Scalar, at: Scalar, ahead: Scalar, position: Scalar, tile: int) -> None:
        """Processes keys [at, at + chunk) of the block for all heads; the first key is `ahead` positions after the tile's first row, which
        is at `position`."""
        refs, meaning = self.refs, self.batch.meaning
        size, rows = self.batch.blocks.chunk, self.batch.groups * tile
        if not self.strided:
            refs.by_head[...] = jnp.swapaxes(refs.pages[pages_at, pl.ds(at, size)].astype(refs.by_head.dtype), 0, 1)
        distance = ahead + jax.lax.broadcasted_iota(jnp.int32, (rows, size), 1)
        row = jax.lax.broadcasted_iota(jnp.int32, (rows, size), 0) % tile
        if tile > 1:
            distance -= row
        seen = distance <= 0
        if meaning.sliding_window > 0:
            seen &= distance > -meaning.sliding_window
        if meaning.chunk > 0:
            seen &= distance >= -((position + row) % meaning.chunk)
        together = self.heads_together(rows)

        def some(number: Scalar) -> None:
            keys, values = self.keys_and_values(pages_at, at, number * together, together)
            self.some_heads(number * together, keys, values, distance, seen, tile)

        if self.strided:  # the first row of a strided load must be statically aligned
            for number in range(self.batch.kv_heads // together):
                some(number)
        else:
            pl.loop(0, self.batch.kv_heads // together)(some)

    def heads_together(self, rows: int) -> int:
        """Number of KV heads processed together, so that one head's matmuls hide the latency of the other's."""
        fitting = max(1, ROWS_TOGETHER // (-(-rows // 8) * 8))
        return max(
            count
            for count in range(1, self.batch.kv_heads + 1)
            if self.batch.kv_heads % count == 0 and count <= fitting
        )

    def keys_and_values(self, pages_at: Scalar, at: Scalar, first: Scalar, count: int) -> tuple[Array, Array]:
        """(keys, values) of `count` KV heads from `first` on, each [count, chunk, D].

        A 16-bit key and value share one 32-bit word; the words of a head are `kv_heads` rows apart.
        """
        refs, size = self.refs, self.batch.blocks.chunk
        if not self.strided:
            pairs = refs.by_head[pl.ds(2 * first, 2 * count)].reshape(count, 2, size, self.batch.head_size)
            return pairs[:, 0], pairs[:, 1]
        words = refs.pages.at[pages_at, pl.ds(at, size)].bitcast(jnp.uint32)
        words = words.reshape(size * self.batch.kv_heads, self.batch.head_size)
        both = jnp.stack([words[pl.ds(first + head, size, stride=self.batch.kv_heads), :] for head in range(count)])
        halves = (both << 16, both & jnp.uint32(0xFFFF0000))
        keys, values = (pltpu.bitcast(half, jnp.float32).astype(jnp.bfloat16) for half in halves)
        return keys, values

    def some_heads(self, first: Scalar, keys: Array, values: Array, distance: Array, seen: Array, tile: int) -> None:
        """One step of the online softmax for the KV heads of `keys` and `values`, the first of which is `first`."""
        refs, meaning, rows, count = self.refs, self.batch.meaning, slice(0, self.batch.groups * tile), keys.shape[0]
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
        powers = jnp.exp(scores - lanes(highest, self.batch.blocks.chunk))
        shrink = jnp.exp(before - highest)
        refs.highest[heads, rows] = highest
        refs.total[heads, rows] = shrink * refs.total[heads, rows] + powers.sum(axis=2, keepdims=True)
        found = product(powers.astype(values.dtype), values, (((2,), (1,)), ((0,), (0,))))
        refs.sums[heads, rows] = lanes(shrink, self.batch.head_size) * refs.sums[heads, rows] + found

    def finish(self, place: Place, span: Span, tile: int) -> None:
        """Computes the tile's output and starts its copy."""
        refs, rows = self.refs, self.batch.groups * tile
        self.copies.wait_output(place.tile_at)
        total = refs.total[:, 0:rows, 0:1]
        result = refs.sums[:, 0:rows] / jnp.where(total > 0, total, 1.0)
        v_scale = self.batch.meaning.first("v")
        if v_scale is not None:
            result = jnp.stack([result[head] * refs.per_head[v_scale + head] for head in range(self.batch.kv_heads)])
        result = result.astype(refs.tiles_out.dtype)
        result = (
            result.reshape(self.batch.heads, tile, self.batch.head_size)
            if tile > 1
            else result.reshape(1, self.batch.heads, -1)
        )
        refs.tiles_out[place.tile_at, 0:tile] = jnp.swapaxes(result, 0, 1) if tile > 1 else result
        self.copies.each_part(
            span.rows,
            lambda first, size: self.copies.output_part(place.tile_at, span.first + first, first, size).start(),
        )
        refs.leaving[place.tile_at] = span.rows


def lanes(alike: Array, width: int) -> Array:
    """Widens [..., 128] with equal lanes to [..., width] by repeating registers, without moving data across lanes."""
    return jnp.concatenate([alike] * -(-width // 128), axis=-1)[..., :width]
