"""`fxhlo.ragged_paged_attention` in plain StableHLO, for every target: a loop over blocks of keys with an online
softmax (Milakov and Gimelshein 2018), so that memory and time depend on the actual contexts, not on the longest possible one.

The loop has two forms: with few rows, each row gathers its own keys; with many, the rows of one request share them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...runtime.core.targets import Target
from ..spec import Operands

Score = Callable[[Array, Array, Array], Array]
"""(dot products of queries and keys, row positions, key positions) -> masked scores."""
Carry = tuple[Array, Array, Array]
"""State of the online softmax: running maximum, sum of exponentials, unnormalized output."""
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
    dtype, kv_heads = query.dtype, kv_cache.shape[2] // 2
    if k_scale is not None:  # scales the queries, so that cached keys are used unscaled
        query = query.astype(jnp.float32) * per_query_head(k_scale, query.shape[1], kv_heads)

    def finished(output: Array) -> Array:
        if v_scale is not None:
            output = output * per_query_head(v_scale, query.shape[1], kv_heads)
        return output.astype(dtype)

    ends, starts = query_start_loc[1:], query_start_loc[:-1]
    score = partial(
        _scores, scale=scale, sliding_window=sliding_window, soft_cap=soft_cap, chunk=chunk, alibi_slopes=alibi_slopes
    )
    tokens = query.shape[0]
    if tokens <= ROWS_ALONE or tokens == block_tables.shape[0]:
        at_token = jnp.arange(tokens)
        request = jnp.minimum((at_token[:, None] >= ends[None, :]).sum(axis=1), ends.shape[0] - 1)
        alive = at_token < ends[-1]
        position = jnp.where(alive, seq_lens[request] - ends[request] + at_token, -1)
        rows = query.astype(jnp.float32)[:, None]  # each row is a tile of one query
        output = _attend(rows, position[:, None], kv_cache, block_tables[request], score, sinks)[:, 0]
        return finished(output), kv_cache
    return finished(_by_request(query, kv_cache, block_tables, seq_lens, starts, ends, score, sinks)), kv_cache


def per_query_head(numbers: Array, heads: int, kv_heads: int) -> Array:
    """Numbers [1] or [Hkv] expanded to a column [Hq, 1]."""
    return jnp.repeat(jnp.broadcast_to(numbers, (kv_heads,)), heads // kv_heads)[:, None]


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
    blocks, block_size, pairs, head_size = kv_cache.shape
    new = jnp.stack([key, value], axis=2).reshape(-1, pairs, head_size)
    dtype = kv_cache.dtype
    bits = BITS.get(dtype.name) if as_bits else None
    if bits is not None:
        kv_cache, new = (jax.lax.bitcast_convert_type(array, bits) for array in (kv_cache, new))
    slots = jnp.where(slot_mapping < 0, blocks * block_size, slot_mapping)
    flat = kv_cache.reshape(blocks * block_size, pairs, head_size).at[slots].set(new, mode="drop")
    flat = flat.reshape(kv_cache.shape)
    return flat if bits is None else jax.lax.bitcast_convert_type(flat, dtype)


def _by_request(
    query: Array,
    kv_cache: Array,
    block_tables: Array,
    seq_lens: Array,
    starts: Array,
    ends: Array,
    score: Score,
    sinks: Array | None,
) -> Array:
    """Loops over requests, and over tiles of QUERY_TILE of their rows, which share the keys that they read."""
    tokens, heads, head_size = query.shape
    tile = min(QUERY_TILE, tokens)
    rows = jnp.pad(query.astype(jnp.float32), ((0, tile), (0, 0), (0, 0)))
    last = jnp.sum(starts < ends[-1])  # requests that have rows

    def one_request(request: Array, output: Array) -> Array:
        start, end = starts[request], ends[request]
        table = jax.lax.dynamic_slice_in_dim(block_tables, request, 1)

        def one_tile(number: Array, output: Array) -> Array:
            first = start + number * tile
            at_row = first + jnp.arange(tile)
            position = jnp.where(at_row < end, seq_lens[request] - end + at_row, -1)
            queries = jax.lax.dynamic_slice_in_dim(rows, first, tile)[None]
            result = _attend(queries, position[None], kv_cache, table, score, sinks)[0]
            old = jax.lax.dynamic_slice_in_dim(output, first, tile)
            merged = jnp.where((at_row < end)[:, None, None], result, old)
            return jax.lax.dynamic_update_slice_in_dim(output, merged, first, 0)

        return jax.lax.fori_loop(0, (end - start + tile - 1) // tile, one_tile, output)

    output = jnp.zeros((tokens + tile, heads, head_size), jnp.float32)
    return jax.lax.fori_loop(0, last, one_request, output)[:tokens]


def _attend(
    queries: Array, positions: Array, kv_cache: Array, tables: Array, score: Score, sinks: Array | None
) -> Array:
    """Online softmax over blocks of keys.

    queries float32 [G, N, Hq, D]: G groups of N rows; positions [G, N], negative for padding rows; tables [G, P],
    the pages of each group -> [G, N, Hq, D], zero in padding rows.
    """
    groups, rows, heads, head_size = queries.shape
    block_size, pairs = kv_cache.shape[1:3]
    kv_heads = pairs // 2
    pages = max(1, KEY_BLOCK // block_size)
    tables = jnp.pad(tables, ((0, 0), (0, -tables.shape[1] % pages)))
    queries = queries.reshape(groups, rows, kv_heads, heads // kv_heads, head_size)

    def block(number: Array, carry: Carry) -> Carry:
        highest, total, output = carry
        table = jax.lax.dynamic_slice_in_dim(tables, number * pages, pages, axis=1)
        context = jnp.take(kv_cache, table, axis=0, mode="clip").reshape(groups, pages * block_size, pairs, head_size)
        at_key = number * pages * block_size + jnp.arange(pages * block_size)
        written = (at_key[None, :] <= positions.max(axis=1)[:, None])[:, :, None, None]
        context = jnp.where(written, context, 0).astype(jnp.float32)
        scores = score(jnp.einsum("gnhqd,gkhd->ghqnk", queries, context[:, :, 0::2]), positions, at_key)
        top = jnp.maximum(highest, scores.max(axis=-1))
        base = jnp.where(jnp.isfinite(top), top, 0.0)
        powers = jnp.exp(scores - base[..., None])
        shrink = jnp.exp(highest - base)
        output = output * shrink[..., None] + jnp.einsum("ghqnk,gkhd->ghqnd", powers, context[:, :, 1::2])
        return top, total * shrink + powers.sum(axis=-1), output

    shape = (groups, kv_heads, heads // kv_heads, rows)
    if sinks is None or not sinks.size:
        highest, total = jnp.full(shape, -jnp.inf), jnp.zeros(shape)
    else:
        highest = jnp.broadcast_to(sinks.astype(jnp.float32).reshape(1, kv_heads, -1, 1), shape)
        total = jnp.ones(shape)
    count = (positions.max() + 1 + pages * block_size - 1) // (pages * block_size)
    _, total, output = jax.lax.fori_loop(0, count, block, (highest, total, jnp.zeros((*shape, head_size))))
    output = output / jnp.where(total > 0, total, 1.0)[..., None]
    output = jnp.where((positions >= 0)[:, None, None, :, None], output, 0.0)
    return output.transpose(0, 3, 1, 2, 4).reshape(groups, rows, heads, head_size)


def _scores(
    products: Array,
    positions: Array,
    at_key: Array,
    *,
    scale: float,
    sliding_window: int,
    soft_cap: float,
    chunk: int,
    alibi_slopes: Array | None,
) -> Array:
    """Scaled, capped, biased and masked scores [G, Hkv, Hq / Hkv, N, keys]."""
    scores = products * scale
    if soft_cap > 0:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    distance = (at_key[None, None, :] - positions[:, :, None])[:, None, None]  # [G, 1, 1, N, keys]
    if alibi_slopes is not None and alibi_slopes.size:
        slopes = alibi_slopes.astype(jnp.float32).reshape(1, products.shape[1], products.shape[2], 1, 1)
        scores = scores + slopes * distance
    seen = distance <= 0
    if sliding_window > 0:
        seen = seen & (distance > -sliding_window)
    if chunk > 0:
        seen = seen & (distance >= -(positions % chunk)[:, None, None, :, None])
    return jnp.where(seen, scores, -jnp.inf)
