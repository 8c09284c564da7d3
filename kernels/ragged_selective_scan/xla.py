"""`fxhlo.ragged_selective_scan` in plain StableHLO: a tile of one request's rows by an associative scan, single rows by the recurrence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import Precision

from ..spec import Operands
from .xla_requests import InTiles, along_requests

TILE = 64


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    return None


def lower(
    x: Array, dt: Array, a: Array, b: Array, c: Array, d: Array, dt_bias: Array | None = None, *, state: Array, state_slots: Array,
    seq_lens: Array, query_start_loc: Array, in_tiles: InTiles | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """Operands and results as in reference.py. in_tiles: see `along_requests`."""
    step = softened(dt, dt_bias)
    wide, rate = x.astype(jnp.float32), a.astype(jnp.float32)
    rows = (step, step * wide, b.astype(jnp.float32), c.astype(jnp.float32))

    def single(state: Array, step: Array, values: Array, keys: Array, queries: Array) -> tuple[Array, Array]:
        state = state * jnp.exp(step[:, :, None] * rate) + values[:, :, None] * keys[:, None, :]
        return jnp.einsum("rdn,rn->rd", state, queries, precision=Precision.HIGHEST), state

    def tile(state: Array, step: Array, values: Array, keys: Array, queries: Array) -> tuple[Array, Array]:
        decay = jnp.exp(step[:, :, None] * rate)
        update = values[:, :, None] * keys[:, None, :]
        decays, updates = jax.lax.associative_scan(_after, (decay, update))
        states = decays * state + updates
        return jnp.einsum("tdn,tn->td", states, queries, precision=Precision.HIGHEST), states[-1]

    batch = (state, state_slots, seq_lens, query_start_loc)
    y, state = along_requests(single, tile, TILE, rows, *batch, in_tiles=in_tiles)
    alive = jnp.arange(x.shape[0]) < query_start_loc[-1]
    return jnp.where(alive[:, None], y + d.astype(jnp.float32) * wide, 0.0).astype(x.dtype), state


def _after(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """The recurrence of two steps, one after the other, as one: (decay, update)."""
    return first[0] * second[0], first[1] * second[0] + second[1]


def softened(dt: Array, dt_bias: Array | None) -> Array:
    """softplus(dt + dt_bias) in float32."""
    wide = dt.astype(jnp.float32)
    return jax.nn.softplus(wide if dt_bias is None else wide + dt_bias.astype(jnp.float32))
