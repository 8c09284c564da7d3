"""`fxhlo.filter_logits` in JAX: the thresholds of `fxhlo.sample`, and nothing at all where no request asks."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from ..sample.arithmetic import least_weight, order_of, product, weights_of
from ..sample.constants import EPSILON, FILTERED, LARGEST, LOG2_E, SMALLEST_NORMAL
from ..sample.xla import top_k_threshold, top_p_keep


def filter_logits(logits: Array, temperature: Array, top_k: Array, top_p: Array, min_p: Array, enabled: Array) -> Array:
    """Operands and result as in `reference.filter_logits`."""
    temperature, top_k, top_p, min_p = (x[:, None] for x in (temperature, top_k, top_p, min_p))

    def compute() -> Array:
        x = logits.astype(jnp.float32)
        x = jnp.where(jnp.isnan(x), -jnp.inf, x)
        x = jnp.where(jnp.abs(x) < SMALLEST_NORMAL, 0.0, x)
        random = temperature >= EPSILON
        divided = x / jnp.where(random, temperature, 1.0)
        y = jnp.where(jnp.isnan(divided), -LARGEST, jnp.clip(divided, -LARGEST, LARGEST))
        y = jnp.where(jnp.abs(y) < SMALLEST_NORMAL, 0.0, y)
        best = jnp.max(y, axis=1, keepdims=True)
        weights = weights_of(jnp.minimum(product(best - y, LOG2_E), FILTERED))
        keep = (min_p <= 0.0) | (weights >= least_weight(min_p))
        keep = keep & (order_of(y) >= top_k_threshold(y, best, top_k, jnp.min(y, axis=1, keepdims=True)))
        keep = keep & top_p_keep(jnp.where(keep, weights, 0), top_p)
        return jnp.where(random, jnp.where(keep, divided, -jnp.inf), x)

    return lax.cond(enabled != 0, compute, lambda: jnp.zeros(logits.shape, jnp.float32))
