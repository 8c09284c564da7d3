"""`fxhlo.logprobs` in JAX: a top-k instead of the sort, and nothing at all where no request asks.

ids and rank equal those of `reference.py`; the values differ by rounding (exp, log and the order of a float sum).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from ..sample.reference import SMALLEST_NORMAL
from ..spec import Operands


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    size = operands[0].shape[1]
    return None if attributes["count"] <= size else f"{attributes['count']} tokens asked of a vocabulary of {size}"


def lower(logits: Array, tokens: Array, enabled: Array, *, count: int) -> tuple[Array, Array, Array]:
    """Operands and results as in `reference.logprobs`."""
    rows = logits.shape[0]

    def compute() -> tuple[Array, Array, Array]:
        x = logits.astype(jnp.float32)
        order = jnp.where(jnp.isnan(x), -jnp.inf, x)
        order = jnp.where(jnp.abs(order) < SMALLEST_NORMAL, 0.0, order)
        chosen = tokens[:, None]
        ids = jnp.concatenate([chosen, lax.top_k(order, count)[1]], axis=1)
        best = jnp.max(order, axis=1, keepdims=True)
        total = jnp.sum(jnp.exp(x - best), axis=1, keepdims=True)
        values = (jnp.take_along_axis(x, ids, axis=1) - best) - jnp.log(total)
        rank = jnp.sum(order >= jnp.take_along_axis(order, chosen, axis=1), axis=1, dtype=jnp.int32)
        return ids, values, rank

    def nothing() -> tuple[Array, Array, Array]:
        shape = (rows, count + 1)
        return jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32), jnp.zeros(rows, jnp.int32)

    return lax.cond(enabled != 0, compute, nothing)
