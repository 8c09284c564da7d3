"""Data types of the TPU attention kernel: its attributes, its memory, and the iteration over rows and keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from .tuning import Blocks

Scalar = Array | int
"""int32, known at run time."""


@dataclass(frozen=True)
class Meaning:
    """The composite's attributes, and (name, size) of the optional operands that are present:
    "sinks", "slopes", "k", "v". Their numbers are concatenated in one array, in this order."""

    scale: float
    sliding_window: int
    chunk: int
    soft_cap: float
    numbers: tuple[tuple[str, int], ...]

    def first(self, name: str) -> int | None:
        """Offset of an optional operand's numbers in that array; None if it is absent."""
        names = [each for each, _ in self.numbers]
        return sum(size for _, size in self.numbers[: names.index(name)]) if name in names else None


@dataclass(frozen=True)
class Refs:
    """The kernel's memory. SMEM: tables [R * P], lengths [R], starts [R + 1], numbers per head. HBM: query, cache
    and output. The rest is scratch in VMEM, double-buffered where copies overlap with compute. None: what a kernel does not need;
    latents [keys, L + R] have no axis of heads, and their queries are used as they come."""

    tables: Any
    lengths: Any
    starts: Any
    per_head: Any
    query: Any
    cache: Any
    output: Any
    pages: Any  # [2, keys, 2 * Hkv, D], in the cache's layout
    by_head: Any  # [2 * Hkv, chunk, D], the current chunk of the pages
    tiles_in: Any  # [2, tile, Hq, D]
    queries: Any  # [Hkv, rows, D]; row: head in its group, then token
    tiles_out: Any  # [2, tile, Hq, D]
    highest: Any  # [Hkv, rows, 128], all lanes alike
    total: Any  # [Hkv, rows, 128], all lanes alike
    sums: Any  # [Hkv, rows, D]
    pages_here: Any  # semaphores [2]
    tile_here: Any
    tile_gone: Any
    leaving: Any  # SMEM [2]: rows of the output tile being copied out


class Place(NamedTuple):
    """Position of the loop: a request, a tile of its rows and a block of the tile's keys; and which of the two
    buffers holds the block, and which the tile."""

    request: Scalar
    tile: Scalar
    block: Scalar
    pages_at: Scalar
    tile_at: Scalar


class Span(NamedTuple):
    """A tile: its first row in the batch, its number of rows, the context position of the first, and the range of its keys."""

    first: Scalar
    rows: Scalar
    position: Scalar
    first_page: Scalar
    end_key: Scalar
    blocks: Scalar


class Batch:
    """The requests of a step, their rows and the keys that these attend to, read from SMEM at run time."""

    def __init__(self, refs: Refs, meaning: Meaning, blocks: Blocks, cores: int, kv_heads: int) -> None:
        self.refs, self.meaning, self.blocks, self.cores = refs, meaning, blocks, cores
        self.tokens, self.heads, self.head_size = refs.query.shape
        self.page_count, self.block_size = refs.cache.shape[:2]
        self.kv_heads = kv_heads
        self.groups = self.heads // self.kv_heads
        self.requests = refs.lengths.shape[0]
        self.table = refs.tables.shape[0] // self.requests
        self.pages = blocks.keys // self.block_size

    def with_rows(self, request: Scalar) -> Scalar:
        """The first of this core's requests, from `request` on, that has rows; at least `requests` if there is none."""

        def empty(request: Scalar) -> Scalar:
            inside = jnp.minimum(request, self.requests - 1)
            return (request < self.requests) & (self.rows_of(inside) <= 0)

        return jax.lax.while_loop(empty, lambda request: request + self.cores, request)

    def rows_of(self, request: Scalar) -> Scalar:
        return self.refs.starts[request + 1] - self.refs.starts[request]

    def span(self, request: Scalar, tile: Scalar) -> Span:
        refs, rows = self.refs, self.rows_of(request)
        before = tile * self.blocks.tile
        count = jnp.minimum(rows - before, self.blocks.tile)
        position = refs.lengths[request] - rows + before
        end_key = jnp.clip(position + count, 0, self.table * self.block_size)
        first_key = jnp.maximum(position - self.meaning.sliding_window + 1, 0) if self.meaning.sliding_window > 0 else 0
        if self.meaning.chunk > 0:
            first_key = jnp.maximum(first_key, position - position % self.meaning.chunk)
        first_page = jnp.minimum(first_key, end_key) // self.block_size
        blocks = jnp.maximum(pl.cdiv(end_key - first_page * self.block_size, self.blocks.keys), 1)
        return Span(refs.starts[request] + before, count, position, first_page, end_key, blocks)

    def next(self, place: Place, span: Span, last: Scalar) -> Place:
        """The position after `place`; `last`: whether its block is the last of the tile."""
        done = last & ((place.tile + 1) * self.blocks.tile >= self.rows_of(place.request))
        return Place(
            jax.lax.cond(done, lambda: self.with_rows(place.request + self.cores), lambda: place.request),
            jnp.where(done, 0, jnp.where(last, place.tile + 1, place.tile)),
            jnp.where(last, 0, place.block + 1),
            1 - place.pages_at,
            jnp.where(last, 1 - place.tile_at, place.tile_at),
        )
