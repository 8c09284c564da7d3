"""`fxhlo.ragged_paged_attention` in plain StableHLO, for every target: a loop over blocks of keys with an online
softmax (Milakov and Gimelshein 2018), so that memory and time depend on the actual contexts, not on the longest possible one.

The loop has two forms: with few rows, each row gathers its own keys; with many, the rows of one request share them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...runtime.core.targets import Target
from ..spec import Operands

Score = Callable[[Array, Array, Array], Array]
"""(dot products of queries and keys, row positions, key positions) -> masked scores."""
Tile = Callable[[Array, Array, Array], Array]
"""(rows [G, N, ...] of G requests, their positions [G, N], negative for padding, block tables [G, P]) -> results [G, N, ...]."""
Split = Callable[[Array], tuple[Array, Array]]
"""cached rows [G, keys, ...] -> (keys [G, keys, Hkv, D], values [G, keys, Hkv, Dv])."""
Carry = tuple[Array, Array, Array]
"""State of the online softmax: running maximum, sum of exponentials, unnormalized output."""


class Long(NamedTuple):
    """How rows are processed of a request that has at least `least`: in tiles of `size`, by `tile`."""

    least: int
    size: int
    tile: Tile


ROWS_ALONE = 32
"""Most rows for which each row gathers its own keys: a decode step, where no two rows share a request."""
QUERY_TILE = 64
KEY_BLOCK = 128
BITS = {"bfloat16": "uint16", "float16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}
"""To update part of a small-float operand, XLA's CPU backend converts all of it to float32 and back; for integers it does not.
On TPU, in contrast, the bitcast would copy the cache."""


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    heads, pairs = operands[0].shape[1], operands[3].shape[2]
    if pairs % 2 or heads % (pairs // 2):
        return f"{heads} query heads are no multiple of {pairs / 2:g} KV heads"
    return None


def lower(
    query: Array, key: Array, value: Array, kv_cache: Array, slot_mapping: Array, block_tables: Array, seq_lens: Array,
    query_start_loc: Array, sinks: Array | None = None, alibi_slopes: Array | None = None, k_scale: Array | None = None,
    v_scale: Array | None = None, *, scale: float, sliding_window: int, soft_cap: float, chunk: int = 0, target: Target | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """Operands and results as in reference.py."""
    key, value = stored(key, k_scale, kv_cache.dtype), stored(value, v_scale, kv_cache.dtype)
    kv_cache = write(key, value, kv_cache, slot_mapping, as_bits=target is None or target.family == "cpu")
    kv_heads = kv_cache.shape[2] // 2
    if k_scale is not None:  # scales the queries, so that cached keys are used unscaled
        scaled = query.astype(jnp.float32) * per_query_head(k_scale, query.shape[1], kv_heads)
    else:
        scaled = query
    score = partial(
        scores, scale=scale, sliding_window=sliding_window, soft_cap=soft_cap, chunk=chunk, alibi_slopes=alibi_slopes
    )
    batch = (block_tables, seq_lens, query_start_loc)
    output = attend_requests(scaled, kv_cache, *batch, score, split_pairs, sinks)
    if v_scale is not None:
        output = output * per_query_head(v_scale, query.shape[1], kv_heads)
    return output.astype(query.dtype), kv_cache


def split_pairs(context: Array) -> tuple[Array, Array]:
    """Keys and values of a cache with the key of head h at 2h, and its value at 2h + 1."""
    return context[:, :, 0::2], context[:, :, 1::2]


def attend_requests(
    query: Array,
    cache: Array,
    block_tables: Array,
    seq_lens: Array,
    query_start_loc: Array,
    score: Score,
    split: Split,
    sinks: Array | None = None,
) -> Array:
    """Attention of every request's rows of query [T, Hq, D] to its context in the cache [blocks, block_size, ...]: float32 [T, Hq, Dv]."""

    def tile(queries: Array, positions: Array, tables: Array) -> Array:
        return attend(queries, positions, cache, tables, score, split, sinks)

    return in_tiles(query.astype(jnp.float32), block_tables, seq_lens, query_start_loc, tile)


def in_tiles(
    rows: Array, block_tables: Array, seq_lens: Array, query_start_loc: Array, tile: Tile, long: Long | None = None
) -> Array:
    """What `tile` computes for all rows [T, ...] of a batch, each tile of one request's rows: [T, ...]."""
    tokens = rows.shape[0]
    if tokens <= ROWS_ALONE or tokens == block_tables.shape[0]:
        request, position = rows_of(tokens, seq_lens, query_start_loc)
        return tile(rows[:, None], position[:, None], block_tables[request])[:, 0]  # each row is a tile of its own
    return _by_request(rows, block_tables, seq_lens, query_start_loc[:-1], query_start_loc[1:], tile, long)


def rows_of(tokens: int, seq_lens: Array, query_start_loc: Array) -> tuple[Array, Array]:
    """(request [T], position in its context [T]) of each row of a batch; -1 for a row of no request."""
    at_token, ends = jnp.arange(tokens), query_start_loc[1:]
    request = jnp.minimum((at_token[:, None] >= ends[None, :]).sum(axis=1), ends.shape[0] - 1)
    return request, jnp.where(at_token < ends[-1], seq_lens[request] - ends[request] + at_token, -1)


def per_query_head(numbers: Array, heads: int, kv_heads: int) -> Array:
    """Numbers [1] or [Hkv] expanded to a column [Hq, 1]."""
    return jnp.repeat(jnp.broadcast_to(numbers, (kv_heads,)), heads // kv_heads)[:, None]


def numbers_per_head(
    query: Array,
    kv_cache: Array,
    sinks: Array | None,
    alibi_slopes: Array | None,
    k_scale: Array | None,
    v_scale: Array | None,
) -> dict[str, Array]:
    """The numbers that a kernel takes for each head, where there are any: sinks and slopes float32 [H], scales k and v [Hkv]."""
    heads, kv_heads = query.shape[1], kv_cache.shape[2] // 2
    optional = {
        "sinks": (sinks, heads),
        "slopes": (alibi_slopes, heads),
        "k": (k_scale, kv_heads),
        "v": (v_scale, kv_heads),
    }
    return {
        name: jnp.broadcast_to(numbers.astype(jnp.float32), (size,))
        for name, (numbers, size) in optional.items()
        if numbers is not None and numbers.size
    }


def stored(new: Array, scale: Array | None, dtype: np.dtype) -> Array:
    """Keys or values [T, Hkv, D], scaled and converted to the cache's dtype."""
    if scale is not None:
        new = new.astype(jnp.float32) / scale.reshape(-1, 1)
    if jnp.dtype(dtype).itemsize == 1:
        whole = jnp.issubdtype(dtype, jnp.integer)
        limits = jnp.iinfo(dtype) if whole else jnp.finfo(dtype)
        new = jnp.round(new.astype(jnp.float32)) if whole else new.astype(jnp.float32)
        new = jnp.clip(new, float(limits.min), float(limits.max))
    return new.astype(dtype)


def write(key: Array, value: Array, kv_cache: Array, slot_mapping: Array, *, as_bits: bool = True) -> Array:
    """The cache with this step's keys and values; out-of-range slots are dropped. as_bits: see BITS."""
    return write_rows(
        jnp.stack([key, value], axis=2).reshape(-1, *kv_cache.shape[2:]), kv_cache, slot_mapping, as_bits=as_bits
    )


def write_rows(new: Array, cache: Array, slot_mapping: Array, *, as_bits: bool) -> Array:
    """The cache [blocks, block_size, ...] with rows `new` [T, ...]; out-of-range slots are dropped. as_bits: see BITS."""
    shape, dtype = cache.shape, cache.dtype
    bits = BITS.get(dtype.name) if as_bits else None
    if bits is not None:
        cache, new = (jax.lax.bitcast_convert_type(array, bits) for array in (cache, new))
    slots = jnp.where(slot_mapping < 0, shape[0] * shape[1], slot_mapping)
    flat = cache.reshape(shape[0] * shape[1], *shape[2:]).at[slots].set(new, mode="drop").reshape(shape)
    return flat if bits is None else jax.lax.bitcast_convert_type(flat, dtype)


def _by_request(
    rows: Array, block_tables: Array, seq_lens: Array, starts: Array, ends: Array, tile: Tile, long: Long | None
) -> Array:
    """Loops over requests, and over tiles of QUERY_TILE of their rows, which share the keys that they read."""
    tokens, size = rows.shape[0], min(QUERY_TILE, rows.shape[0])
    most = max(size, long.size) if long else size
    padded = jnp.pad(rows, ((0, most), *((0, 0) for _ in rows.shape[1:])))
    last = jnp.sum(starts < ends[-1])  # requests that have rows
    whole = jax.eval_shape(tile, padded[None, :size], jnp.zeros((1, size), jnp.int32), block_tables[:1])

    def by(tile: Tile, size: int, request: Array, output: Array) -> Array:
        start, end = starts[request], ends[request]
        table = jax.lax.dynamic_slice_in_dim(block_tables, request, 1)

        def one_tile(number: Array, output: Array) -> Array:
            first = start + number * size
            at_row = first + jnp.arange(size)
            position = jnp.where(at_row < end, seq_lens[request] - end + at_row, -1)
            result = tile(jax.lax.dynamic_slice_in_dim(padded, first, size)[None], position[None], table)[0]
            old = jax.lax.dynamic_slice_in_dim(output, first, size)
            inside = (at_row < end).reshape(size, *(1,) * (result.ndim - 1))
            return jax.lax.dynamic_update_slice_in_dim(output, jnp.where(inside, result, old), first, 0)

        return jax.lax.fori_loop(0, (end - start + size - 1) // size, one_tile, output)

    def one_request(request: Array, output: Array) -> Array:
        if long is None:
            return by(tile, size, request, output)
        many = ends[request] - starts[request] >= long.least
        ways = partial(by, long.tile, long.size), partial(by, tile, size)
        return jax.lax.cond(many, *ways, request, output)

    output = jnp.zeros((tokens + most, *whole.shape[2:]), whole.dtype)
    return jax.lax.fori_loop(0, last, one_request, output)[:tokens]


def _sizes(cache: Array, split: Split) -> tuple[int, int]:
    """(KV heads, size of a value)."""
    _, values = jax.eval_shape(split, jax.ShapeDtypeStruct((1, 1, *cache.shape[2:]), cache.dtype))
    return values.shape[2], values.shape[3]


def attend(
    queries: Array,
    positions: Array,
    cache: Array,
    tables: Array,
    score: Score,
    split: Split,
    sinks: Array | None = None,
) -> Array:
    """Online softmax over blocks of keys.

    queries float32 [G, N, Hq, D]: G groups of N rows; positions [G, N], negative for padding rows; tables [G, P],
    the pages of each group -> [G, N, Hq, Dv], zero in padding rows.
    """
    groups, rows, heads, head_size = queries.shape
    block_size, kv_heads, value_size = cache.shape[1], *_sizes(cache, split)
    pages = max(1, KEY_BLOCK // block_size)
    tables = jnp.pad(tables, ((0, 0), (0, -tables.shape[1] % pages)))
    queries = queries.reshape(groups, rows, kv_heads, heads // kv_heads, head_size)

    def block(number: Array, carry: Carry) -> Carry:
        highest, total, output = carry
        table = jax.lax.dynamic_slice_in_dim(tables, number * pages, pages, axis=1)
        context = jnp.take(cache, table, axis=0, mode="clip").reshape(groups, pages * block_size, *cache.shape[2:])
        at_key = number * pages * block_size + jnp.arange(pages * block_size)
        written = at_key[None, :] <= positions.max(axis=1)[:, None]
        context = jnp.where(written.reshape(*written.shape, *(1,) * (context.ndim - 2)), context, 0)
        keys, values = split(context.astype(jnp.float32))
        scored = score(jnp.einsum("gnhqd,gkhd->ghqnk", queries, keys), positions, at_key)
        top = jnp.maximum(highest, scored.max(axis=-1))
        base = jnp.where(jnp.isfinite(top), top, 0.0)
        powers = jnp.exp(scored - base[..., None])
        shrink = jnp.exp(highest - base)
        output = output * shrink[..., None] + jnp.einsum("ghqnk,gkhd->ghqnd", powers, values)
        return top, total * shrink + powers.sum(axis=-1), output

    shape = (groups, kv_heads, heads // kv_heads, rows)
    if sinks is None or not sinks.size:
        highest, total = jnp.full(shape, -jnp.inf), jnp.zeros(shape)
    else:
        highest = jnp.broadcast_to(sinks.astype(jnp.float32).reshape(1, kv_heads, -1, 1), shape)
        total = jnp.ones(shape)
    count = (positions.max() + 1 + pages * block_size - 1) // (pages * block_size)
    _, total, output = jax.lax.fori_loop(0, count, block, (highest, total, jnp.zeros((*shape, value_size))))
    output = output / jnp.where(total > 0, total, 1.0)[..., None]
    output = jnp.where((positions >= 0)[:, None, None, :, None], output, 0.0)
    return output.transpose(0, 3, 1, 2, 4).reshape(groups, rows, heads, value_size)


def scores(
    products: Array,
    positions: Array,
    at_key: Array,
    *,
    scale: float,
    sliding_window: int,
    soft_cap: float,
    chunk: int = 0,
    alibi_slopes: Array | None,
) -> Array:
    """Scaled, capped, biased and masked scores [G, Hkv, Hq / Hkv, N, keys]."""
    scaled = products * scale
    if soft_cap > 0:
        scaled = soft_cap * jnp.tanh(scaled / soft_cap)
    at_key = at_key if at_key.ndim == 2 else at_key[None]  # of each group, or the same for all
    distance = (at_key[:, None, :] - positions[:, :, None])[:, None, None]  # [G, 1, 1, N, keys]
    if alibi_slopes is not None and alibi_slopes.size:
        slopes = alibi_slopes.astype(jnp.float32).reshape(1, products.shape[1], products.shape[2], 1, 1)
        scaled = scaled + slopes * distance
    seen = distance <= 0
    if sliding_window > 0:
        seen = seen & (distance > -sliding_window)
    if chunk > 0:
        seen = seen & (distance >= -(positions % chunk)[:, None, None, :, None])
    return jnp.where(seen, scaled, -jnp.inf)
