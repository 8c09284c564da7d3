"""`fxhlo.ragged_paged_latent_attention` in plain StableHLO, for every target: the loop of kernels/paged_attention/xla.py with the
latents as the one KV head.

With `selected`, each row gathers its own list: to that loop it is a request whose pages hold one token.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ...runtime.core.targets import Target
from ..paged_attention.xla import ROWS_ALONE, attend, attend_requests, rows_of, scores, write_rows
from ..spec import Operands


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    if "selected" in operands.named and attributes.get("sliding_window", 0) > 0:
        return "it has selected positions and a sliding window"
    return None


def lower(
    query: Array, latent: Array, kv_cache: Array, slot_mapping: Array, block_tables: Array, seq_lens: Array, query_start_loc: Array,
    selected: Array | None = None, *, value_size: int, scale: float, sliding_window: int = 0, target: Target | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """Operands and results as in reference.py."""
    as_bits = target is None or target.family == "cpu"
    kv_cache = write_rows(latent.astype(kv_cache.dtype), kv_cache, slot_mapping, as_bits=as_bits)
    score = partial(scores, scale=scale, sliding_window=sliding_window, soft_cap=0.0, alibi_slopes=None)

    def split(context: Array) -> tuple[Array, Array]:
        shared = context[:, :, None]
        return shared, shared[..., :value_size]

    if selected is None:
        output = attend_requests(query, kv_cache, block_tables, seq_lens, query_start_loc, score, split)
        return output.astype(query.dtype), kv_cache
    slots, counts = selected_slots(selected, block_tables, seq_lens, query_start_loc, kv_cache.shape[1])
    tokens = kv_cache.reshape(-1, 1, kv_cache.shape[2])

    def one_row(row: tuple[Array, Array, Array]) -> Array:
        queries, table, count = row
        return attend(queries[None, None], count[None, None] - 1, tokens, table[None], score, split)[0, 0]

    rows = (query.astype(jnp.float32), slots, counts)
    return jax.lax.map(one_row, rows, batch_size=ROWS_ALONE).astype(query.dtype), kv_cache


def selected_slots(
    selected: Array, block_tables: Array, seq_lens: Array, query_start_loc: Array, block_size: int
) -> tuple[Array, Array]:
    """(slots int32 [T, K] of the cache that hold the selected positions, how many of each row are valid [T])."""
    request, position = rows_of(selected.shape[0], seq_lens, query_start_loc)
    at = jnp.maximum(selected, 0)
    pages = jnp.take_along_axis(block_tables[request], at // block_size, axis=1, mode="clip")
    counts = jnp.where(position >= 0, (selected >= 0).sum(axis=1), 0)
    return pages * block_size + at % block_size, counts.astype(jnp.int32)
