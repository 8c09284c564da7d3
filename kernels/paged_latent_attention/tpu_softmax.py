"""Arithmetic of the TPU kernel over latents: an online softmax over a block of keys, for a tile of rows and all their heads."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from ..paged_attention.tpu_batch import Batch, Place, Scalar, Span
from ..paged_attention.tpu_copies import Copies
from ..paged_attention.tpu_softmax import FAR, lanes

TOGETHER = 16
"""Rows of keys that are cleared together: those of a register in any dtype."""


class LatentSoftmax:
    """The state of the online softmax of one tile, in vector memory (`Refs.highest`, `total` and `sums`): a row for each query row and head."""

    def __init__(self, batch: Batch, copies: Copies) -> None:
        self.batch, self.copies, self.refs = batch, copies, batch.refs
        self.latent = self.refs.sums.shape[1]
        exact = self.refs.pages.dtype == jnp.float32
        self.product = partial(
            jax.lax.dot_general, preferred_element_type=jnp.float32,
            precision=jax.lax.Precision.HIGHEST if exact else None,
        )  # fmt: skip

    def compute(self, place: Place, span: Span, last: Scalar, tile: int) -> None:
        """Processes the block's keys for a tile of at most `tile` rows."""
        pl.when(place.block == 0)(lambda: self.begin(place, tile))
        size = self.batch.blocks.chunk
        first_key = span.first_page * self.batch.block_size + place.block * self.batch.blocks.keys
        keys = jnp.minimum(span.end_key - first_key, self.batch.blocks.keys)
        chunks = pl.cdiv(keys, size)
        self.clear(place, keys, chunks * size)

        @pl.loop(0, chunks)
        def _(chunk: Array) -> None:
            at = pl.multiple_of(chunk * size, size)
            self.chunk(place, at, first_key + at - span.position, tile)

        pl.when(last)(lambda: self.finish(place, span, tile))

    def begin(self, place: Place, tile: int) -> None:
        """Starts a tile: awaits its queries and resets the softmax state."""
        self.copies.each_tile_part(place, lambda copy: copy.wait())
        rows = slice(0, self.batch.heads * tile)
        self.refs.highest[rows] = jnp.full((self.batch.heads * tile, 128), FAR, jnp.float32)
        self.refs.total[rows] = jnp.zeros((self.batch.heads * tile, 128), jnp.float32)
        self.refs.sums[rows] = jnp.zeros((self.batch.heads * tile, self.latent), jnp.float32)

    def clear(self, place: Place, keys: Scalar, end: Scalar) -> None:
        """Zeroes keys [keys, end) of the block: stale data may be NaN, and 0 * NaN is not 0."""

        @pl.loop(keys // TOGETHER, end // TOGETHER)
        def _(group: Array) -> None:
            first = pl.multiple_of(group * TOGETHER, TOGETHER)
            here = self.refs.pages.at[place.pages_at, pl.ds(first, TOGETHER)]
            row = first + jax.lax.broadcasted_iota(jnp.int32, here.shape, 0)
            here[...] = jnp.where(row < keys, here[...].astype(jnp.float32), 0.0).astype(here.dtype)

    def chunk(self, place: Place, at: Scalar, ahead: Scalar, tile: int) -> None:
        """Processes keys [at, at + chunk) of the block; the first key is `ahead` positions after the tile's first row."""
        refs, heads, size = self.refs, self.batch.heads, self.batch.blocks.chunk
        rows, window = slice(0, heads * tile), self.batch.meaning.sliding_window
        context = refs.pages[place.pages_at, pl.ds(at, size)]
        queries = refs.tiles_in[place.tile_at, 0:tile].reshape(heads * tile, -1)
        scores = self.product(queries, context, (((1,), (1,)), ((), ()))) * self.batch.meaning.scale
        distance = ahead + jax.lax.broadcasted_iota(jnp.int32, (heads * tile, size), 1)
        if tile > 1:
            row = jax.lax.broadcasted_iota(jnp.int32, (tile, heads, size), 0)
            distance -= row.reshape(heads * tile, size)
        seen = distance <= 0
        if window > 0:
            seen &= distance > -window
        scores = jnp.where(seen, scores, -jnp.inf)
        before = refs.highest[rows]
        highest = jnp.maximum(before, scores.max(axis=1, keepdims=True))
        powers = jnp.exp(scores - lanes(highest, size))
        shrink = jnp.exp(before - highest)
        refs.highest[rows] = highest
        refs.total[rows] = shrink * refs.total[rows] + powers.sum(axis=1, keepdims=True)
        found = self.product(powers.astype(context.dtype), context[:, : self.latent], (((1,), (0,)), ((), ())))
        refs.sums[rows] = lanes(shrink, self.latent) * refs.sums[rows] + found

    def finish(self, place: Place, span: Span, tile: int) -> None:
        """Computes the tile's output and starts its copy."""
        refs, heads = self.refs, self.batch.heads
        self.copies.wait_output(place.tile_at)
        total = refs.total[0 : heads * tile, 0:1]
        result = refs.sums[0 : heads * tile] / jnp.where(total > 0, total, 1.0)
        refs.tiles_out[place.tile_at, 0:tile] = result.astype(refs.tiles_out.dtype).reshape(tile, heads, self.latent)
        self.copies.each_part(
            span.rows,
            lambda first, size: self.copies.output_part(place.tile_at, span.first + first, first, size).start(),
        )
        refs.leaving[place.tile_at] = span.rows
