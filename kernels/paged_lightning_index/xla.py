"""`fxhlo.ragged_paged_lightning_index` in plain StableHLO, for every target: scores block by block of keys, then the highest.

Where no context is longer than the number of positions to choose, all of them are, and nothing is scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ...runtime.core.targets import Target
from ..paged_attention.xla import KEY_BLOCK, in_tiles, rows_of, write_rows
from ..spec import Operands


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    return None


def lower(
    query: Array, key: Array, weights: Array, kv_cache: Array, slot_mapping: Array, block_tables: Array, seq_lens: Array,
    query_start_loc: Array, *, count: int, target: Target | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """Operands and results as in reference.py."""
    as_bits = target is None or target.family == "cpu"
    kv_cache = write_rows(key.astype(kv_cache.dtype), kv_cache, slot_mapping, as_bits=as_bits)
    wide = jnp.float32
    rows = jnp.concatenate([query.astype(wide), weights.astype(wide)[:, :, None]], axis=2)
    _, position = rows_of(query.shape[0], seq_lens, query_start_loc)

    def all_of_them() -> Array:
        at = jnp.arange(count, dtype=jnp.int32)[None, :]
        return jnp.where(at <= position[:, None], at, -1)

    def highest() -> Array:
        def tile(rows: Array, positions: Array, tables: Array) -> Array:
            return _highest(rows, positions, kv_cache, tables, count)

        found = in_tiles(rows, block_tables, seq_lens, query_start_loc, tile)
        return jnp.where(position[:, None] >= 0, found, -1)

    return jax.lax.cond(seq_lens.max() <= count, all_of_them, highest), kv_cache


def _highest(rows: Array, positions: Array, cache: Array, tables: Array, count: int) -> Array:
    """rows float32 [G, N, H, D + 1], a head's query and its weight; positions [G, N], tables [G, P] -> int32 [G, N, count]."""
    queries, weights = rows[..., :-1], rows[..., -1]
    block_size = cache.shape[1]
    pages = max(1, KEY_BLOCK // block_size)
    tables = jnp.pad(tables, ((0, 0), (0, -tables.shape[1] % pages)))
    keys = pages * block_size

    def block(number: Array, scores: Array) -> Array:
        table = jax.lax.dynamic_slice_in_dim(tables, number * pages, pages, axis=1)
        context = jnp.take(cache, table, axis=0, mode="clip").reshape(tables.shape[0], keys, cache.shape[2])
        at_key = number * keys + jnp.arange(keys)
        written = at_key[None, :] <= positions.max(axis=1)[:, None]
        context = jnp.where(written[:, :, None], context, 0).astype(jnp.float32)
        products = jax.nn.relu(jnp.einsum("gnhd,gkd->gnhk", queries, context))
        found = jnp.einsum("gnh,gnhk->gnk", weights, products)
        found = jnp.where(at_key <= positions[:, :, None], found, -jnp.inf)
        return jax.lax.dynamic_update_slice_in_dim(scores, found, number * keys, axis=2)

    longest = tables.shape[1] * block_size
    scores = jnp.full((*positions.shape, max(longest, count)), -jnp.inf, jnp.float32)
    scores = jax.lax.fori_loop(0, (positions.max() + keys) // keys, block, scores)
    values, places = jax.lax.top_k(scores, count)
    places = jnp.sort(jnp.where(values > -jnp.inf, places, scores.shape[2]), axis=2)
    return jnp.where(places < scores.shape[2], places, -1).astype(jnp.int32)
