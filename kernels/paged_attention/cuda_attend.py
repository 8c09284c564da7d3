"""Attention to a paged cache on CUDA: a program a tile of one request's query rows, a KV head, and a share of the keys.

Comes in: the batch, and the cache with this step's keys and values. Goes out: the rows' outputs. A tile's keys are read in steps with an online softmax
(Dao 2023, FlashAttention 2); where there are few tiles, several programs share the keys of one, and their results are merged by the logarithms of their sums
(flash-decoding). Guaranteed: nothing outside an operand is read, whatever block tables, lengths and starts say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from ..spec import FLOAT8
from .cuda_tiles import Tiles, width_of
from .xla import per_query_head, rows_of

LOG2_E = 1.4426950408889634
Carry = tuple[Array, Array, Array]
"""Of the online softmax, a row of scores each: the highest score in base 2, the sum of powers, the output before it is divided by it."""


@dataclass(frozen=True)
class Meaning:
    """The kernel's attributes, as in reference.py."""

    scale: float
    sliding_window: int
    chunk: int
    soft_cap: float


@dataclass(frozen=True)
class Layout:
    """Where keys and values lie in a cache [blocks, block_size, n, columns]. parts: (first column, columns) of a key and of a query; each part is
    multiplied by itself. pairs: the value of head h is row 2h + 1, its key row 2h; else there is one row, and the value is the key's first part."""

    parts: tuple[tuple[int, int], ...]
    pairs: bool

    @property
    def value(self) -> int:
        """Columns of a value."""
        return self.parts[0][1]


def attend(
    query: Array,
    cache: Array,
    block_tables: Array,
    seq_lens: Array,
    query_start_loc: Array,
    per_head: Mapping[str, Array],
    meaning: Meaning,
    layout: Layout,
    tiles: Tiles,
) -> Array:
    """[T, Hq, columns of a value]; per_head: float32 numbers of query heads ("sinks", "slopes") and KV heads ("k", "v", the cache's scales)."""
    tokens, heads, _ = query.shape
    which = tiles_of(tokens, seq_lens, query_start_loc, tiles)
    whole, shape = tiles.splits == 1, (tiles.splits, tokens, heads)
    inside = [name for name in per_head if whole or name in ("slopes", "k")]  # the others are the merge's
    shares = [jax.ShapeDtypeStruct(one, jnp.float32) for one in ((*shape, layout.value), shape, shape)]
    call = pl.pallas_call(
        partial(_kernel, inside=tuple(inside), meaning=meaning, layout=layout, tiles=tiles),
        grid=(tiles.tiles, -(-heads // tiles.group), tiles.splits),
        out_shape=[jax.ShapeDtypeStruct((tokens, heads, layout.value), query.dtype)] if whole else shares,
        compiler_params=plgpu.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
        name="fxhlo_paged_attention",
    )
    results = call(which, block_tables, query, cache, *(per_head[name] for name in inside))
    if whole:
        (output,) = results
    else:
        outputs, highest, totals = results
        output = merged(outputs, highest, totals, per_head).astype(query.dtype)
    if tiles.rows == 1:
        return output  # rows of no request have programs as well
    return jnp.where((jnp.arange(tokens) < query_start_loc[-1])[:, None, None], output, 0)


def tiles_of(tokens: int, seq_lens: Array, query_start_loc: Array, tiles: Tiles) -> Array:
    """int32 [tiles, 4]: of each tile the request, the first row, its position in the context, and how many rows there are, 0 for none."""
    if tiles.rows == 1:
        request, position = rows_of(tokens, seq_lens, query_start_loc)
        return jnp.stack([request, jnp.arange(tokens), position, jnp.where(position >= 0, 1, 0)], 1).astype(jnp.int32)
    starts, ends = query_start_loc[:-1], query_start_loc[1:]
    each = (jnp.maximum(ends - starts, 0) + tiles.rows - 1) // tiles.rows
    last, number = jnp.cumsum(each), jnp.arange(tiles.tiles)
    request = jnp.minimum((number[:, None] >= last[None, :]).sum(axis=1), starts.shape[0] - 1)
    first = starts[request] + (number - last[request] + each[request]) * tiles.rows
    count = jnp.where(number < last[-1], jnp.clip(ends[request] - first, 0, tiles.rows), 0)
    return jnp.stack([request, first, seq_lens[request] - ends[request] + first, count], axis=1).astype(jnp.int32)


def merged(outputs: Array, highest: Array, totals: Array, per_head: Mapping[str, Array]) -> Array:
    """The output [T, Hq, D] of the splits' outputs [S, T, Hq, D] before they were divided, highest scores and sums of powers [S, T, Hq]."""
    top = highest.max(axis=0)
    if "sinks" in per_head:
        top = jnp.maximum(top, per_head["sinks"] * LOG2_E)
    base = jnp.where(top > -jnp.inf, top, 0.0)
    weights = jnp.exp2(highest - base)
    total = (totals * weights).sum(axis=0)
    if "sinks" in per_head:
        total = total + jnp.exp2(per_head["sinks"] * LOG2_E - base)
    output = (outputs * weights[..., None]).sum(axis=0) / jnp.where(total > 0, total, 1.0)[..., None]
    if "v" in per_head:
        output = output * per_query_head(per_head["v"], output.shape[1], per_head["v"].shape[0])
    return output


class Tile:
    """What one program works at: its rows of scores, each a query row and head, with [scores] numbers each."""

    def __init__(self, which: Any, tokens: int, heads: int, tiles: Tiles) -> None:
        number, self.group = pl.program_id(0), pl.program_id(1)
        self.request, first, self.position, self.count = (which[number, place] for place in range(4))
        score = lax.iota(jnp.int32, tiles.scores)
        row, member = lax.div(score, np.int32(tiles.padded)), lax.rem(score, np.int32(tiles.padded))
        self.row, self.head, self.at = first + row, self.group * tiles.group + member, self.position + row
        here = (self.row >= 0) & (self.row < tokens) & (member < tiles.group) & (self.head < heads)
        self.read = here & (row < self.count)
        self.stored = here & (row < 1) if tiles.rows == 1 else self.read

    def keys(self, meaning: Meaning, longest: int) -> tuple[Array, Array]:
        """(first, end) of the positions that some row of the tile attends to."""
        first = jnp.int32(0)
        if meaning.sliding_window > 0:
            first = jnp.maximum(first, self.position - (meaning.sliding_window - 1))
        if meaning.chunk > 0:
            here = jnp.maximum(self.position, 0)
            first = jnp.maximum(first, here - lax.rem(here, np.int32(meaning.chunk)))
        return first, jnp.where(self.count > 0, jnp.minimum(self.position + self.count, longest), 0)

    def sees(self, key: Array, meaning: Meaning) -> Array:
        """[scores, keys]: whether a row attends to a position."""
        key, at = key[None, :], self.at[:, None]
        seen = key <= at
        if meaning.sliding_window > 0:
            seen = seen & (at - key < meaning.sliding_window)
        if meaning.chunk > 0:
            seen = seen & (key >= at - lax.rem(at, jnp.full_like(at, meaning.chunk)))
        return seen


def _kernel(
    which: Any, tables: Any, query: Any, cache: Any, *refs: Any, inside: tuple[str, ...], meaning: Meaning, layout: Layout, tiles: Tiles
) -> None:  # fmt: skip
    per_head, results = dict(zip(inside, refs, strict=False)), refs[len(inside) :]
    tile, split = Tile(which, query.shape[0], query.shape[1], tiles), pl.program_id(2)
    low = cache.dtype == query.dtype or cache.dtype.itemsize == 1
    columns = Columns(layout, query.dtype if low else jnp.float32)
    queries = columns.load(query, (tile.row, tile.head), tile.read)
    first, end = tile.keys(meaning, tables.shape[1] * cache.shape[1])
    start = first - lax.rem(first, np.int32(tiles.keys))
    steps = lax.div(jnp.maximum(end - start, 0) + (tiles.keys - 1), np.int32(tiles.keys))
    share = lax.div(steps + (tiles.splits - 1), np.int32(tiles.splits))

    def step(number: Array, carry: Carry) -> Carry:
        highest, total, output = carry
        key = start + number * tiles.keys + lax.iota(jnp.int32, tiles.keys)
        there = (key >= first) & (key < end)
        keys, values = columns.read(tables, cache, tile, key, there)
        products = reduce(add, (_product(one, other, 1) for one, other in zip(queries, keys, strict=True)))
        scored = _scores(products, key, tile, meaning, per_head)
        scored = jnp.where(tile.sees(key, meaning) & there[None, :], scored, -jnp.inf)
        top = jnp.maximum(highest, scored.max(axis=1))
        base = jnp.where(top > -jnp.inf, top, 0.0)
        powers, shrink = jnp.exp2(scored - base[:, None]), jnp.exp2(highest - base)
        output = output * shrink[:, None] + _product(powers.astype(columns.compute), values, 0)
        return top, total * shrink + powers.sum(axis=1), output

    zero = jnp.zeros((tiles.scores,), jnp.float32)
    carry: Carry = (jnp.full_like(zero, -jnp.inf), zero, jnp.zeros((tiles.scores, tiles.head), jnp.float32))
    carry = lax.fori_loop(split * share, jnp.minimum((split + 1) * share, steps), step, carry)
    _store(results, carry, tile, split, columns, per_head)


class Columns:
    """Parts of rows of queries and of the cache, each padded to a power of two with zeros. compute: the dtype of products."""

    def __init__(self, layout: Layout, compute: Any) -> None:
        self.layout, self.compute = layout, compute
        widths = [(begin, size, lax.iota(jnp.int32, width_of(size))) for begin, size in layout.parts]
        self.parts = [((begin + at)[None, :], (at < size)[None, :]) for begin, size, at in widths]

    def load(self, ref: Any, rows: tuple[Array, ...], mask: Array) -> list[Array]:
        """Each part of the rows [n, columns] at these indices, one number or [n] each; 0 where the mask [n] is false."""
        at = tuple(row[:, None] if row.ndim else row for row in rows)
        return [self._one(ref, (*at, place), mask[:, None] & across) for place, across in self.parts]

    def _one(self, ref: Any, at: tuple[Array, ...], mask: Array) -> Array:
        if ref.dtype.name in FLOAT8:  # for which Pallas has no zero
            return jnp.where(mask, plgpu.load(ref.at[at], mask=mask).astype(self.compute), 0)
        return plgpu.load(ref.at[at], mask=mask, other=0).astype(self.compute)

    def read(self, tables: Any, cache: Any, tile: Tile, key: Array, there: Array) -> tuple[list[Array], Array]:
        """Parts of the keys, and values, at positions `key` [n], 0 where they are not `there`: unused slots may hold anything, even NaN."""
        blocks, block_size = cache.shape[:2]
        page = plgpu.load(tables.at[tile.request, lax.div(key, np.int32(block_size))], mask=there, other=0)
        page, offset = jnp.minimum(jnp.maximum(page, 0), blocks - 1), lax.rem(key, np.int32(block_size))
        if not self.layout.pairs:
            keys = self.load(cache, (page, offset, jnp.int32(0)), there)
            return keys, keys[0]
        keys, (values,) = (self.load(cache, (page, offset, 2 * tile.group + place), there) for place in range(2))
        return keys, values


def _product(left: Array, right: Array, contracted: int) -> Array:
    """left [M, K] times right [N, K] (contracted 1) or [K, N] (0), in float32."""
    precision = lax.Precision.HIGHEST if left.dtype == jnp.float32 else lax.Precision.DEFAULT
    dimensions = (((1,), (contracted,)), ((), ()))
    return lax.dot_general(left, right, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _scores(products: Array, key: Array, tile: Tile, meaning: Meaning, per_head: Mapping[str, Any]) -> Array:
    """Scores in base 2 of products of queries and stored keys: scaled, capped, biased."""
    plain = meaning.soft_cap <= 0 and "slopes" not in per_head
    scored = products * (meaning.scale * LOG2_E if plain else meaning.scale)
    if "k" in per_head:
        scored = scored * per_head["k"][tile.group]
    if plain:
        return scored
    if meaning.soft_cap > 0:
        scored = meaning.soft_cap * jnp.tanh(scored / meaning.soft_cap)
    if "slopes" in per_head:
        slope = plgpu.load(per_head["slopes"].at[tile.head], mask=tile.read, other=0)
        scored = scored + slope[:, None] * (key[None, :] - tile.at[:, None]).astype(jnp.float32)
    return scored * LOG2_E


def _store(
    results: tuple[Any, ...], carry: Carry, tile: Tile, split: Array, columns: Columns, per_head: Mapping[str, Any]
) -> None:  # fmt: skip
    """One result: the output itself. Three: a split's output before it is divided, the highest scores and the sums."""
    highest, total, output = carry
    at = lax.iota(jnp.int32, output.shape[1])[None, :]
    row, head, mask = tile.row[:, None], tile.head[:, None], tile.stored[:, None] & (at < columns.layout.value)
    if len(results) > 1:
        plgpu.store(results[0].at[split, row, head, at], output, mask=mask)
        for result, numbers in zip(results[1:], (highest, total), strict=True):
            plgpu.store(result.at[split, tile.row, tile.head], numbers, mask=tile.stored)
        return
    if "sinks" in per_head:
        sink = plgpu.load(per_head["sinks"].at[tile.head], mask=tile.read, other=-jnp.inf) * LOG2_E
        top = jnp.maximum(highest, sink)
        base = jnp.where(top > -jnp.inf, top, 0.0)
        shrink = jnp.exp2(highest - base)
        total, output = total * shrink + jnp.exp2(sink - base), output * shrink[:, None]
    output = output / jnp.where(total > 0, total, 1.0)[:, None]
    if "v" in per_head:
        output = output * per_head["v"][tile.group]
    plgpu.store(results[0].at[row, head, at], output.astype(results[0].dtype), mask=mask)
