"""`fxhlo.ragged_paged_attention` of a device that has some of the blocks of its heads' cache (decode context parallelism), in plain StableHLO.

Block number b is on device b % devices, as its block b // devices: blocks of one request that follow each other are on all devices,
however vLLM numbers them. A device attends with all rows to the keys that it has, at their places in the request, and gives what an
online softmax carries; the devices' are merged by the logarithms of their sums (Dao et al., Flash-Decoding, 2023).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...runtime.core.targets import Target
from .xla import KEY_BLOCK, Carry, Score, in_tiles, per_query_head, scores, split_pairs, stored, write

NOWHERE = 1 << 30
"""The place of keys that are another device's: behind all rows."""


def part(
    query: Array, key: Array, value: Array, kv_cache: Array, slot_mapping: Array, block_tables: Array, seq_lens: Array,
    query_start_loc: Array, sinks: Array | None = None, alibi_slopes: Array | None = None, k_scale: Array | None = None,
    v_scale: Array | None = None, *, number: Array, devices: int, scale: float, sliding_window: int, soft_cap: float, chunk: int = 0,
    target: Target | None = None,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """The device's part: float32 [T, Hq, D + 1], outputs times the sums of exponentials, then these sums; the highest scores [T, Hq], which
    the exponentials are relative to; and the cache. number: of the device, int32 []; the other operands as in reference.py."""
    key, value = stored(key, k_scale, kv_cache.dtype), stored(value, v_scale, kv_cache.dtype)
    as_bits = target is None or target.family == "cpu"
    block_size, kv_heads = kv_cache.shape[1], kv_cache.shape[2] // 2
    kv_cache = write(key, value, kv_cache, own_slots(slot_mapping, block_size, number, devices), as_bits=as_bits)
    query = query.astype(jnp.float32)
    if k_scale is not None:
        query = query * per_query_head(k_scale, query.shape[1], kv_heads)
    score = partial(
        scores, scale=scale, sliding_window=sliding_window, soft_cap=soft_cap, chunk=chunk, alibi_slopes=alibi_slopes
    )
    first = None if sinks is None or not sinks.size else jnp.where(number == 0, sinks.astype(jnp.float32), -jnp.inf)
    tables = own_pages(block_tables, seq_lens, block_size, number, devices)

    def tile(queries: Array, positions: Array, pages: Array) -> Array:
        return _attended(queries, positions, kv_cache, pages, score, first)

    parts = in_tiles(query, tables, seq_lens, query_start_loc, tile)
    outputs, total, highest = parts[..., :-2], parts[..., -2:-1], parts[..., -1]
    if v_scale is not None:
        outputs = outputs * per_query_head(v_scale, query.shape[1], kv_heads)
    alive = jnp.arange(query.shape[0]) < query_start_loc[-1]
    highest = jnp.where(alive[:, None], highest, -jnp.inf)
    return jnp.where(alive[:, None, None], jnp.concatenate([outputs, total], axis=-1), 0.0), highest, kv_cache


def weighted(parts: Array, highest: Array, overall: Array) -> Array:
    """A device's part relative to the highest scores of all devices, so that parts can be added up: float32 [T, Hq, D + 1]."""
    return parts * jnp.exp(highest - jnp.where(jnp.isfinite(overall), overall, 0.0))[..., None]


def merged(parts: Array, *, dtype: str) -> Array:
    """The sum of the devices' weighted parts -> the output [T, Hq, D]."""
    outputs, total = parts[..., :-1], parts[..., -1:]
    return (outputs / jnp.where(total > 0, total, 1.0)).astype(np.dtype(dtype))


def own_slots(slot_mapping: Array, block_size: int, number: Array, devices: int) -> Array:
    """Where a step's rows go in the device's part of the cache; -1 for those that are another device's."""
    block, place = slot_mapping // block_size, slot_mapping % block_size
    own = (slot_mapping >= 0) & (block % devices == number)
    return jnp.where(own, block // devices * block_size + place, -1)


def own_pages(block_tables: Array, seq_lens: Array, block_size: int, number: Array, devices: int) -> Array:
    """[R, P, 2]: the device's blocks of each request, those that it has first, and which page of the request each is; NOWHERE behind them."""
    requests, pages = block_tables.shape
    page = jnp.arange(pages)
    own = (page * block_size < seq_lens[:, None]) & (block_tables % devices == number)
    place = jnp.where(own, jnp.cumsum(own, axis=1) - 1, pages)
    row = jnp.arange(requests)[:, None]
    blank = jnp.zeros((requests, pages), jnp.int32)
    blocks = blank.at[row, place].set(block_tables // devices, mode="drop")
    which = (blank + NOWHERE // block_size).at[row, place].set(jnp.broadcast_to(page, own.shape), mode="drop")
    return jnp.stack([blocks, which], axis=-1)


def _attended(
    queries: Array, positions: Array, cache: Array, tables: Array, score: Score, first: Array | None
) -> Array:
    """As `xla.attend`, over pages that say which they are: [G, N, Hq, D + 2], outputs and sums that are not divided, and the highest scores."""
    groups, rows, heads, head_size = queries.shape
    block_size, kv_heads = cache.shape[1], cache.shape[2] // 2
    pages = max(1, KEY_BLOCK // block_size)
    padding = ((0, 0), (0, -tables.shape[1] % pages), (0, 0))
    tables = jnp.pad(tables, padding, constant_values=NOWHERE // block_size)
    queries = queries.reshape(groups, rows, kv_heads, heads // kv_heads, head_size)

    def block(number: Array, carry: Carry) -> Carry:
        highest, total, output = carry
        table = jax.lax.dynamic_slice_in_dim(tables, number * pages, pages, axis=1)
        context = jnp.take(cache, table[..., 0], axis=0, mode="clip").reshape(
            groups, pages * block_size, *cache.shape[2:]
        )
        at_key = (table[..., 1:] * block_size + jnp.arange(block_size)).reshape(groups, pages * block_size)
        written = at_key <= positions.max(axis=1)[:, None]
        context = jnp.where(written[..., None, None], context, 0)
        keys, values = split_pairs(context.astype(jnp.float32))
        scored = score(jnp.einsum("gnhqd,gkhd->ghqnk", queries, keys), positions, at_key)
        top = jnp.maximum(highest, scored.max(axis=-1))
        base = jnp.where(jnp.isfinite(top), top, 0.0)
        powers, shrink = jnp.exp(scored - base[..., None]), jnp.exp(highest - base)
        output = output * shrink[..., None] + jnp.einsum("ghqnk,gkhd->ghqnd", powers, values)
        return top, total * shrink + powers.sum(axis=-1), output

    shape = (groups, kv_heads, heads // kv_heads, rows)
    highest, total = jnp.full(shape, -jnp.inf), jnp.zeros(shape)
    if first is not None:
        highest = jnp.broadcast_to(first.reshape(1, kv_heads, -1, 1), shape)
        total = jnp.isfinite(highest).astype(jnp.float32)
    have = (tables[..., 1] < NOWHERE // block_size).sum(axis=1).max()
    count = (have + pages - 1) // pages
    highest, total, output = jax.lax.fori_loop(0, count, block, (highest, total, jnp.zeros((*shape, head_size))))
    carried = jnp.concatenate([output, total[..., None], highest[..., None]], axis=-1)
    return carried.transpose(0, 3, 1, 2, 4).reshape(groups, rows, heads, head_size + 2)
