"""DMA copies of the TPU attention kernel: pages and queries into VMEM, the output out of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .tpu_batch import Batch, Place, Scalar

Copy = Any
"""Result of `pltpu.make_async_copy`, whose type jax does not export; has `start()` and `wait()`."""


class Copies:
    """Copies that are started in one step and awaited in a later one, both with the same Place."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.refs = batch, batch.refs

    def each_page(self, place: Place, act: Callable[[Copy], None]) -> None:
        refs, span = self.refs, self.batch.span(place.request, place.tile)
        first = span.first_page + place.block * self.batch.pages
        count = jnp.clip(pl.cdiv(span.end_key, self.batch.block_size) - first, 0, self.batch.pages)

        @pl.loop(0, count)
        def _(page: Scalar) -> None:
            block = jnp.clip(refs.tables[place.request * self.batch.table + first + page], 0, self.batch.page_count - 1)
            into = refs.pages.at[place.pages_at, pl.ds(page * self.batch.block_size, self.batch.block_size)]
            act(pltpu.make_async_copy(refs.cache.at[block], into, refs.pages_here.at[place.pages_at]))

    def fetch_pages(self, place: Place) -> None:
        self.each_page(place, lambda copy: copy.start())

    def wait_pages(self, place: Place) -> None:
        """Waits for the block's pages: at once where it is full."""
        span = self.batch.span(place.request, place.tile)
        first = span.first_page + place.block * self.batch.pages
        full = pl.cdiv(span.end_key, self.batch.block_size) - first >= self.batch.pages
        pl.when(full)(lambda: self.whole_block(place).wait())
        pl.when(~full)(lambda: self.each_page(place, lambda copy: copy.wait()))

    def whole_block(self, place: Place) -> Copy:
        """Stands for the copies of all pages of a full block, since a DMA semaphore counts bytes."""
        block, here = self.refs.pages.at[place.pages_at], self.refs.pages_here.at[place.pages_at]
        return pltpu.make_async_copy(block, block, here)

    def each_part(self, count: Scalar, act: Callable[[Scalar, int], None]) -> None:
        """Splits `count` rows into parts of static power-of-two size and calls act(first, size) for each."""
        size = 1 << (min(self.batch.blocks.tile, self.batch.tokens).bit_length() - 1)
        while size:
            first = count & ~(2 * size - 1)
            pl.when((count & size) != 0)(partial(act, first, size))
            size //= 2

    def each_tile_part(self, place: Place, act: Callable[[Copy], None]) -> None:
        refs, span = self.refs, self.batch.span(place.request, place.tile)

        def part(first: Scalar, size: int) -> None:
            rows = refs.query.at[pl.ds(span.first + first, size)]
            into = refs.tiles_in.at[place.tile_at, pl.ds(first, size)]
            act(pltpu.make_async_copy(rows, into, refs.tile_here.at[place.tile_at]))

        self.each_part(span.rows, part)

    def fetch_tile(self, place: Place) -> None:
        self.each_tile_part(place, lambda copy: copy.start())

    def output_part(self, at: Scalar, into: Scalar, first: Scalar, size: int) -> Copy:
        rows = self.refs.tiles_out.at[at, pl.ds(first, size)]
        return pltpu.make_async_copy(rows, self.refs.output.at[pl.ds(into, size)], self.refs.tile_gone.at[at])

    def wait_output(self, at: Scalar) -> None:
        """Waits until the output buffer `at` is free. A DMA semaphore counts bytes, so that a copy of any rows of that size can be awaited."""
        self.each_part(self.refs.leaving[at], lambda first, size: self.output_part(at, 0, first, size).wait())
        self.refs.leaving[at] = 0

    def clear_padding(self) -> None:
        """Zeroes the output rows after the last request's."""
        refs, tile = self.refs, self.batch.blocks.tile
        first = jnp.clip(refs.starts[self.batch.requests], 0, self.batch.tokens)
        refs.tiles_out[0] = jnp.zeros(refs.tiles_out.shape[1:], refs.tiles_out.dtype)

        def each(act: Callable[[Copy], None]) -> None:
            @pl.loop(0, pl.cdiv(self.batch.tokens - first, tile))
            def _(number: Scalar) -> None:
                start = first + number * tile
                count = jnp.minimum(self.batch.tokens - start, tile)
                self.each_part(count, lambda at, size: act(self.output_part(0, start + at, at, size)))

        each(lambda copy: copy.start())
        each(lambda copy: copy.wait())
