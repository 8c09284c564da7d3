"""`fxhlo.ragged_ssd` in plain StableHLO: a tile of one request's rows by matmuls, single rows by the recurrence."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.lax import Precision

from ..ragged_selective_scan.xla import softened
from ..ragged_selective_scan.xla_requests import InPlace, InTiles, along_requests
from ..spec import Operands

TILE = 64
"""Rows of a request whose decays fill a square matrix."""
einsum = partial(jnp.einsum, precision=Precision.HIGHEST)


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    heads, groups = operands.named["x"].shape[1], operands.named["b"].shape[1]
    return f"{heads} heads are no multiple of {groups} groups" if heads % groups else None


def lower(
    x: Array, dt: Array, a: Array, b: Array, c: Array, d: Array, dt_bias: Array, state: Array, state_slots: Array,
    seq_lens: Array, query_start_loc: Array, *, in_place: InPlace | None = None, in_tiles: InTiles | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """Operands and results as in reference.py. in_place, in_tiles: see `along_requests`."""
    step, wide = softened(dt, dt_bias), x.astype(jnp.float32)
    y, state = decayed_attention(
        c,
        b,
        step[:, :, None] * wide,
        step * a.astype(jnp.float32),
        state,
        state_slots,
        seq_lens,
        query_start_loc,
        in_place=in_place,
        in_tiles=in_tiles,
    )
    alive = jnp.arange(x.shape[0]) < query_start_loc[-1]
    y = y + d.astype(jnp.float32)[:, None] * wide
    return jnp.where(alive[:, None, None], y, 0.0).astype(x.dtype), state


def decayed_attention(
    queries: Array, keys: Array, values: Array, decay: Array, state: Array, state_slots: Array, seq_lens: Array, query_start_loc: Array,
    *, in_place: InPlace | None = None, in_tiles: InTiles | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """Linear attention with a decay per head and row: state = exp(decay) state + values keys', output = state queries.

    queries, keys [T, G, N], each group for H / G heads; values [T, H, P]; decay [T, H], at most 0; state [slots, H, P, N].
    Returns the outputs float32 [T, H, P], zero in rows of no request, and the updated state.
    """
    rows = tuple(one.astype(jnp.float32) for one in (queries, keys, values, decay))
    ways = {"in_place": in_place, "in_tiles": in_tiles}
    return along_requests(_single, _tile, TILE, rows, state, state_slots, seq_lens, query_start_loc, **ways)  # type: ignore[arg-type]


def _grouped(one: Array, groups: int, axis: int) -> Array:
    """Splits the axis of heads [H] into [G, H / G]."""
    return one.reshape(*one.shape[:axis], groups, -1, *one.shape[axis + 1 :])


def _single(state: Array, queries: Array, keys: Array, values: Array, decay: Array) -> tuple[Array, Array]:
    """state [R, H, P, N]; queries, keys [R, G, N]; values [R, H, P]; decay [R, H]: one row of each request."""
    groups, shape = keys.shape[1], state.shape
    values = _grouped(values, groups, 1)
    state = _grouped(state * jnp.exp(decay)[..., None, None], groups, 1)
    state = state + values[..., None] * keys[:, :, None, None, :]
    output = einsum("rgqpn,rgn->rgqp", state, queries)
    return output.reshape(shape[:3]), state.reshape(shape)


def _tile(state: Array, queries: Array, keys: Array, values: Array, decay: Array) -> tuple[Array, Array]:
    """state [H, P, N]; queries, keys [C, G, N]; values [C, H, P]; decay [C, H]: C rows of one request."""
    groups, shape, made = keys.shape[1], state.shape, values.shape
    state, values, decay = _grouped(state, groups, 0), _grouped(values, groups, 1), _grouped(decay, groups, 1)
    total = jnp.cumsum(decay, axis=0).transpose(1, 2, 0)  # [G, Q, C]
    weights = einsum("ign,jgn->gij", queries, keys)[:, None] * decays(total)
    inside = einsum("gqij,jgqp->igqp", weights, values)
    before = einsum("ign,gqpn->igqp", queries, state) * jnp.exp(total).transpose(2, 0, 1)[..., None]
    left = jnp.exp(total[..., -1:] - total).transpose(2, 0, 1)[..., None]
    state = state * jnp.exp(total[..., -1])[..., None, None] + einsum("jgqp,jgn->gqpn", values * left, keys)
    return (inside + before).reshape(made), state.reshape(shape)


def decays(total: Array) -> Array:
    """total [..., C]: running sums of the decays' logarithms -> [..., C, C]: the decay from row j to row i, zero where j is later."""
    size = total.shape[-1]
    seen = jnp.arange(size)[:, None] >= jnp.arange(size)[None, :]
    return jnp.exp(jnp.where(seen, total[..., :, None] - total[..., None, :], -jnp.inf))
