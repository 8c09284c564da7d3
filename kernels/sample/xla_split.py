"""Greedy sampling from logits whose columns are split over devices: each names the best of its own, and the best of these wins.

What `fxhlo.sample` gives at temperature 0: NaN counts as -infinity, infinities as the largest finite numbers, the lowest id wins among equals.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from .reference import EPSILON, LARGEST


def whole_needed(flags: Array, temperature: Array, enabled: Array) -> Array:
    """Whether a step needs all logits on every device: a row is processed, drawn, or shows log-probabilities. bool []."""
    return jnp.any(flags != 0) | jnp.any(temperature >= EPSILON) | (enabled != 0)


def candidate(logits: Array, tokens: Array, start: Array) -> Array:
    """logits float32 [R, V / n] of one device, tokens int32 [R], its best; start int32 [], its first id -> int32 [1, 2, R]: bits of the
    best logits, and their ids."""
    best = jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]
    best = jnp.where(jnp.isnan(best), -LARGEST, jnp.clip(best, -LARGEST, LARGEST))
    return jnp.stack([lax.bitcast_convert_type(best, jnp.int32), tokens + start])[None]


def winner(candidates: Array) -> Array:
    """int32 [n, 2, R], of devices in the order of their ids -> int32 [R]."""
    best = lax.bitcast_convert_type(candidates[:, 0], jnp.float32)
    first = jnp.argmax(best, axis=0)  # of equals the first
    return jnp.take_along_axis(candidates[:, 1], first[None], axis=0)[0]
