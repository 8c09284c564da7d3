"""`fxhlo.ragged_paged_latent_attention` in plain StableHLO, for every target: the loop of kernels/paged_attention/xla.py with the
latents as the one KV head.

Many rows of one request take the decompressed form where that takes fewer flops: keys and values of all heads are made of a block
of latents once for a tile of them. With `selected`, each row gathers its own list: to that loop it is a request whose pages hold one token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ...runtime.core.targets import Target
from ..paged_attention.xla import ROWS_ALONE, Long, Score, attend, in_tiles, rows_of, scores, write_rows
from ..spec import Operands

DECOMPRESSED_TILE = 512
"""Rows that share the keys and values that are made of a block of latents."""


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    if "selected" in operands.named and attributes.get("sliding_window", 0) > 0:
        return "it has selected positions and a sliding window"
    return None


def lower(
    query: Array, latent: Array, w_uk: Array, w_uv: Array, kv_cache: Array, slot_mapping: Array, block_tables: Array, seq_lens: Array,
    query_start_loc: Array, selected: Array | None = None, *, scale: float, sliding_window: int = 0, target: Target | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """Operands and results as in reference.py."""
    as_bits = target is None or target.family == "cpu"
    kv_cache = write_rows(latent.astype(kv_cache.dtype), kv_cache, slot_mapping, as_bits=as_bits)
    score = partial(scores, scale=scale, sliding_window=sliding_window, soft_cap=0.0, alibi_slopes=None)
    forms = Forms(kv_cache, w_uk.astype(jnp.float32), w_uv.astype(jnp.float32), score)
    batch = (query.astype(jnp.float32), block_tables, seq_lens, query_start_loc)
    output = in_tiles(*batch, forms.absorbed, forms.long(query)) if selected is None else forms.of(selected, *batch)
    return output.astype(query.dtype), kv_cache


@dataclass(frozen=True)
class Forms:
    """Attention of a tile of rows in either form. w_uk [N, P, L], w_uv [N, L, V]: float32."""

    kv_cache: Array
    w_uk: Array
    w_uv: Array
    score: Score

    def absorbed(self, queries: Array, positions: Array, tables: Array, cache: Array | None = None) -> Array:
        """queries [G, N, Hq, P + R] -> [G, N, Hq, V], as `Tile`: in the space of the latents."""
        nope = self.w_uk.shape[1]
        inside = jnp.einsum("gnhp,hpl->gnhl", queries[..., :nope], self.w_uk)
        queries = jnp.concatenate([inside, queries[..., nope:]], axis=-1)

        def split(context: Array) -> tuple[Array, Array]:
            shared = context[:, :, None]
            return shared, shared[..., : self.w_uk.shape[2]]

        attended = attend(queries, positions, self.kv_cache if cache is None else cache, tables, self.score, split)
        return jnp.einsum("gnhl,hlv->gnhv", attended, self.w_uv)

    def decompressed(self, queries: Array, positions: Array, tables: Array) -> Array:
        """As `absorbed`, over keys and values of every head, made of each block of latents as it is read."""
        heads, _, size = self.w_uk.shape

        def split(context: Array) -> tuple[Array, Array]:
            latent, rotary = context[..., :size], context[..., size:]
            shared = jnp.broadcast_to(rotary[:, :, None], (*rotary.shape[:2], heads, rotary.shape[2]))
            keys = jnp.concatenate([jnp.einsum("gkl,hpl->gkhp", latent, self.w_uk), shared], axis=-1)
            return keys, jnp.einsum("gkl,hlv->gkhv", latent, self.w_uv)

        return attend(queries, positions, self.kv_cache, tables, self.score, split)

    def long(self, query: Array) -> Long | None:
        """Requests with so many rows that decompressing each block once for a tile takes fewer flops; None if none can have."""
        tokens, _, size = query.shape
        latent, value = self.w_uv.shape[1:]
        rows = min(DECOMPRESSED_TILE, tokens)
        tile = latent * (self.w_uk.shape[1] + value) + rows * (size + value)
        least = -(-tile // (self.kv_cache.shape[2] + latent))
        return Long(least, rows, self.decompressed) if least <= rows else None

    def of(self, selected: Array, query: Array, block_tables: Array, seq_lens: Array, query_start_loc: Array) -> Array:
        """Attention of each row of query [T, Hq, P + R] to the positions in its list alone."""
        slots, counts = selected_slots(selected, block_tables, seq_lens, query_start_loc, self.kv_cache.shape[1])
        tokens = self.kv_cache.reshape(-1, 1, self.kv_cache.shape[2])

        def one_row(row: tuple[Array, Array, Array]) -> Array:
            queries, table, count = row
            return self.absorbed(queries[None, None], count[None, None] - 1, table[None], tokens)[0, 0]

        return jax.lax.map(one_row, (query, slots, counts), batch_size=ROWS_ALONE)


def selected_slots(
    selected: Array, block_tables: Array, seq_lens: Array, query_start_loc: Array, block_size: int
) -> tuple[Array, Array]:
    """(slots int32 [T, K] of the cache that hold the selected positions, how many of each row are valid [T])."""
    request, position = rows_of(selected.shape[0], seq_lens, query_start_loc)
    at = jnp.maximum(selected, 0)
    pages = jnp.take_along_axis(block_tables[request], at // block_size, axis=1, mode="clip")
    counts = jnp.where(position >= 0, (selected >= 0).sum(axis=1), 0)
    return pages * block_size + at % block_size, counts.astype(jnp.int32)
