"""`fxhlo.filter_logits` in JAX, with the thresholds of `fxhlo.sample`; skipped if no request enables it."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from ..sample.reference import EPSILON
from ..sample.xla import cleaned, distance, finite, kept, supports

__all__ = ["lower", "supports"]


def lower(logits: Array, temperature: Array, top_k: Array, top_p: Array, min_p: Array, enabled: Array) -> Array:
    """Operands and result as in `reference.filter_logits`."""
    temperature, top_k, top_p, min_p = (x[:, None] for x in (temperature, top_k, top_p, min_p))

    def compute() -> Array:
        x = cleaned(logits)
        random = temperature >= EPSILON
        divided = x / jnp.where(random, temperature, 1.0)
        y = finite(divided)
        best, lowest = jnp.max(y, axis=1, keepdims=True), jnp.min(y, axis=1, keepdims=True)
        keep = kept(y, best, distance(y, best), top_k, top_p, min_p, lowest)
        return jnp.where(random, jnp.where(keep, divided, -jnp.inf), x)

    return lax.cond(enabled != 0, compute, lambda: jnp.zeros(logits.shape, jnp.float32))
