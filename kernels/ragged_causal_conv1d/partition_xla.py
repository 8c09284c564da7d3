"""`fxhlo.ragged_causal_conv1d` in JAX, for a device's channels: the reference stands in a module at the sizes of one device alone, and channels
that several devices have count on each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..spec import Operands


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    return None


def lower(
    values: Array, weight: Array, bias: Array | None = None, *, state: Array, state_slots: Array, seq_lens: Array,
    query_start_loc: Array, silu: bool,
) -> tuple[Array, Array]:  # fmt: skip
    """Operands and results as in reference.py."""
    tokens, kept, taps = values.shape[0], weight.shape[1] - 1, weight.astype(jnp.float32)
    at, bounds = jnp.arange(tokens), jnp.clip(query_start_loc, 0, tokens)
    starts, ends, slots = bounds[:-1], bounds[1:], jnp.clip(state_slots, 0, state.shape[0] - 1)
    request = jnp.minimum((at[:, None] >= ends[None, :]).sum(axis=1), ends.shape[0] - 1)
    position, alive, fresh = at - starts[request], at < ends[-1], seq_lens == ends - starts
    rows = jnp.where(alive[:, None], values.astype(jnp.float32), 0.0)
    before = jnp.where(fresh[:, None, None], 0.0, state[slots].astype(jnp.float32))
    total = rows * taps[:, kept]
    for back in range(1, kept + 1):
        earlier = before[request, jnp.clip(kept - back + position, 0, kept - 1)]
        tap = jnp.where((position >= back)[:, None], rows[jnp.maximum(at - back, 0)], earlier)
        total = total + tap * taps[:, kept - back]
    total = total if bias is None else total + bias.astype(jnp.float32)
    total = jax.nn.silu(total) if silu else total
    output = jnp.where(alive[:, None], total, 0.0).astype(values.dtype)
    if not kept:
        return output, state
    place = (ends - starts)[:, None] - kept + jnp.arange(kept)  # [R, kept], below 0: of the state
    new = rows[jnp.clip(starts[:, None] + place, 0, tokens - 1)]
    old = jnp.take_along_axis(before, jnp.clip(place + kept, 0, kept - 1)[:, :, None], axis=1)
    after = jnp.where((place >= 0)[:, :, None], new, old).astype(state.dtype)
    has_rows = (ends > starts)[
        :, None, None
    ]  # a request without rows writes what is there to slot 0, which is nobody's
    after = jnp.where(has_rows, after, state[:1])
    return output, state.at[jnp.where(has_rows[:, 0, 0], slots, 0)].set(after)
