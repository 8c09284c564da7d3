"""`fxhlo.ragged_gated_delta_rule` in plain StableHLO: a tile of one request's rows by matmuls, single rows by the recurrence.

In a tile, each row's correction depends on those of the rows before it: with strictly lower triangular A, A[i, j] = beta_i (k_i k_j)
decay(j to i), the corrections are (I + A)^-1 beta (v - what the state in front of the tile holds) (Yang et al. 2024, section 3.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import Precision

from ..ragged_selective_scan.xla_requests import InPlace, InTiles, along_requests
from ..ragged_ssd.xla import decays
from ..spec import Operands
from .reference import EPSILON

TILE = 64
CHANNEL_TILE = 16
"""Rows of a tile where each channel of a key decays on its own: the decays between two rows are then a vector."""
einsum = partial(jnp.einsum, precision=Precision.HIGHEST)
matmul = partial(jnp.matmul, precision=Precision.HIGHEST)


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    heads, key_heads = operands.named["v"].shape[1], operands.named["k"].shape[1]
    return f"{heads} heads are no multiple of {key_heads} key heads" if heads % key_heads else None


def lower(
    q: Array, k: Array, v: Array, g: Array, beta: Array, state: Array, state_slots: Array, seq_lens: Array, query_start_loc: Array,
    *, scale: float, l2norm: bool, in_place: InPlace | None = None, in_tiles: InTiles | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """Operands and results as in reference.py. in_place, in_tiles: see `along_requests`."""

    def unit(one: Array) -> Array:
        one = one.astype(jnp.float32)
        return one * jax.lax.rsqrt(jnp.sum(one * one, axis=-1, keepdims=True) + EPSILON) if l2norm else one

    rows = (unit(q) * scale, unit(k), *(one.astype(jnp.float32) for one in (v, g, beta)))
    tile, width = (_tile, TILE) if g.ndim == 2 else (_channel_tile, CHANNEL_TILE)
    output, state = along_requests(
        _single, tile, width, rows, state, state_slots, seq_lens, query_start_loc, in_place=in_place, in_tiles=in_tiles
    )
    return output.astype(v.dtype), state


def by_head(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    """Queries and keys [C, Hk, K] for each head of the values [C, H, V]: [C, H, K]."""
    return jnp.repeat(q, v.shape[1] // q.shape[1], axis=1), jnp.repeat(k, v.shape[1] // k.shape[1], axis=1)


def _single(state: Array, q: Array, k: Array, v: Array, g: Array, beta: Array) -> tuple[Array, Array]:
    """state [R, H, V, K]; q, k [R, Hk, K]; v [R, H, V]; g [R, H] or [R, H, K]; beta [R, H]: one row of each request."""
    q, k = by_head(q, k, v)
    decay = jnp.exp(g if g.ndim == 3 else g[..., None])
    state = state * decay[:, :, None, :]
    correction = beta[..., None] * (v - einsum("rhvk,rhk->rhv", state, k))
    state = state + correction[..., None] * k[:, :, None, :]
    return einsum("rhvk,rhk->rhv", state, q), state


def _tile(state: Array, q: Array, k: Array, v: Array, g: Array, beta: Array) -> tuple[Array, Array]:
    """state [H, V, K]; q, k [C, Hk, K]; v [C, H, V]; g, beta [C, H]: C rows of one request, one decay a head."""
    q, k = by_head(q, k, v)
    total = jnp.cumsum(g, axis=0).T  # [H, C]
    between = decays(total)
    keys = einsum("ihk,jhk->hij", k, k) * between * beta.T[:, :, None]
    queries = einsum("ihk,jhk->hij", q, k) * between
    until = jnp.exp(total).T[:, :, None]
    left = jnp.exp(total[:, -1:] - total).T[:, :, None]
    return _corrected(state, keys, queries, q * until, k * until, k * left, v, beta, jnp.exp(total[:, -1:]))


def _channel_tile(state: Array, q: Array, k: Array, v: Array, g: Array, beta: Array) -> tuple[Array, Array]:
    """As `_tile`, with g [C, H, K]: a decay for each channel of a key."""
    q, k = by_head(q, k, v)
    total = jnp.cumsum(g, axis=0)  # [C, H, K]
    between = decays(total.transpose(1, 2, 0))  # [H, K, C, C]
    keys = einsum("ihk,jhk,hkij->hij", k, k, between) * beta.T[:, :, None]
    queries = einsum("ihk,jhk,hkij->hij", q, k, between)
    until, left = jnp.exp(total), jnp.exp(total[-1] - total)
    return _corrected(state, keys, queries, q * until, k * until, k * left, v, beta, until[-1])


def _corrected(
    state: Array, keys: Array, queries: Array, q: Array, k: Array, left: Array, v: Array, beta: Array, decay: Array
) -> tuple[Array, Array]:
    """Outputs [C, H, V] and the state after a tile.

    keys, queries [H, C, C]: products of the rows' keys (times beta) and queries with the keys up to them, decayed. q, k [C, H, K]:
    decayed from the tile's start; left [C, H, K]: keys decayed to its end; decay [H, 1] or [H, K]: of the whole tile.
    """
    size = keys.shape[1]
    held = einsum("ihk,hvk->ihv", k, state)
    wanted = beta[:, :, None] * (v - held)
    below = jnp.arange(size)[:, None] > jnp.arange(size)[None, :]
    corrections = einsum("hij,jhv->ihv", inverse(jnp.where(below, keys, 0.0)), wanted)
    output = einsum("ihk,hvk->ihv", q, state) + einsum("hij,jhv->ihv", queries, corrections)
    return output, state * decay[:, None, :] + einsum("jhv,jhk->hvk", corrections, left)


def inverse(below: Array) -> Array:
    """(I + below)^-1 for strictly lower triangular matrices [..., C, C].

    Pairs of diagonal blocks are joined, from size 1 on: [[X, 0], [B, Y]]^-1 = [[X^-1, 0], [-Y^-1 B X^-1, Y^-1]]. That is as stable as
    forward substitution, which the product of (I + below^(2^k)) is not.
    """
    size, at = below.shape[-1], jnp.arange(below.shape[-1])
    made, half = jnp.broadcast_to(jnp.eye(size), below.shape), 1
    while half < size:
        block = at // half
        joined = (block[:, None] == block[None, :] + 1) & (block[None, :] % 2 == 0)
        corner = jnp.where(joined, below, 0.0)
        # Blocks of size 1 are their own inverses; libtpu 0.0.42 refuses a product with the constant identity.
        inner = corner if half == 1 else matmul(matmul(made, corner), made)
        made = made - inner
        half *= 2
    return made
