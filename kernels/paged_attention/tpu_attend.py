"""The attention half of `fxhlo.ragged_paged_attention` on TPU: one Pallas kernel that reads the cache.

One loop over requests, their tiles of query rows and blocks of keys, which fetches the next block's pages while one
is computed, with an online softmax in float32 (Milakov and Gimelshein 2018; Dao 2023, FlashAttention-2; Kwon et
al. 2023, PagedAttention). Only pages that some row of the tile attends to are read, and only rows of requests are computed.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .tpu_batch import Batch, Meaning, Place, Refs, Scalar, Span
from .tpu_copies import Copies
from .tpu_softmax import Softmax
from .tuning import Blocks

ANYWHERE = pl.BlockSpec(memory_space=pl.ANY)


def attend(
    scalars: tuple[Array, ...], query: Array, kv_cache: Array, meaning: Meaning, blocks: Blocks, cores: int
) -> Array:
    """Output rows [T, Hq, D]. scalars: flattened block_tables, seq_lens, query_start_loc, and the per-head numbers of Meaning."""
    _, heads, head_size = query.shape
    pairs = kv_cache.shape[2]
    by_row = (pairs // 2, blocks.rows)
    compute = jnp.dtype(blocks.compute)
    tile = pltpu.VMEM((2, blocks.tile, heads, head_size), query.dtype)
    two = pltpu.SemaphoreType.DMA((2,))

    def kernel(*refs: Any) -> None:
        batch = Batch(Refs(*refs), meaning, blocks, cores, pairs // 2)
        copies = Copies(batch)
        Loop(batch, copies, Softmax(batch, copies)).run()

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


class Blockwise(Protocol):
    """The arithmetic of one block of keys for one tile of at most `tile` rows; of the first one it begins the tile, of the last
    it copies the result out."""

    def compute(self, place: Place, span: Span, last: Scalar, tile: int) -> None: ...


class Loop:
    """The kernel's body on one core: every block of keys of every tile of rows of the core's requests."""

    def __init__(self, batch: Batch, copies: Copies, softmax: Blockwise) -> None:
        self.batch, self.refs = batch, batch.refs
        self.copies, self.softmax = copies, softmax

    def run(self) -> None:
        refs, core = self.refs, pl.program_id(0)
        for at in range(2):
            refs.leaving[at] = 0
        start = Place(self.batch.with_rows(core), *(jnp.int32(0),) * 4)

        @pl.when(start.request < self.batch.requests)
        def _() -> None:
            self.copies.fetch_tile(start)
            self.copies.fetch_pages(start)

        jax.lax.while_loop(lambda place: place.request < self.batch.requests, self.step, start)
        for at in range(2):
            self.copies.wait_output(at)

        @pl.when(core == 0)
        def _() -> None:
            self.copies.clear_padding()

    def step(self, place: Place) -> Place:
        """One block of keys for one tile of rows."""
        span = self.batch.span(place.request, place.tile)
        last = place.block + 1 == span.blocks
        following = self.batch.next(place, span, last)

        @pl.when(following.request < self.batch.requests)
        def _() -> None:
            @pl.when(last)
            def _() -> None:
                self.copies.fetch_tile(following)

            self.copies.fetch_pages(following)

        self.copies.wait_pages(place)
        alone = self.batch.rows_of(place.request) == 1
        pl.when(alone)(lambda: self.softmax.compute(place, span, last, 1))
        if self.batch.blocks.tile > 1:
            pl.when(~alone)(lambda: self.softmax.compute(place, span, last, self.batch.blocks.tile))
        return following
