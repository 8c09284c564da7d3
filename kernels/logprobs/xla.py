"""`fxhlo.logprobs` in JAX, with a top-k instead of the sort; skipped if no request enables it.

ids and rank equal those of `reference.py`; the values differ by rounding (exp, log and the order of a float sum).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from ..process_logits.xla import masked
from ..sample.reference import SMALLEST_NORMAL
from ..spec import Operands

Results = tuple[Array, Array, Array]


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    size = operands[0].shape[1]
    return None if attributes["count"] <= size else f"{attributes['count']} tokens asked of a vocabulary of {size}"


def lower(
    logits: Array, tokens: Array, enabled: Array, allowed_mask: Array | None = None, *, count: int
) -> tuple[Array, Array, Array]:
    """Operands and results as in `reference.logprobs`."""
    return where_asked(partial(_compute, tokens=tokens, count=count), logits, enabled, allowed_mask, count)


def where_asked(
    compute: Callable[[Array], Results], logits: Array, enabled: Array, allowed_mask: Array | None, count: int
) -> Results:
    """compute(logits), with masked tokens at -infinity, if `enabled` is not 0; zeros otherwise.

    The masked logits are computed only if some row has a mask.
    """
    rows = logits.shape[0]

    def nothing() -> Results:
        shape = (rows, count + 1)
        return jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32), jnp.zeros(rows, jnp.int32)

    def something() -> Results:
        if allowed_mask is None:
            return compute(logits)
        return lax.cond(
            jnp.all(allowed_mask == -1), lambda: compute(logits), lambda: compute(masked(logits, allowed_mask))
        )

    return lax.cond(enabled != 0, something, nothing)


def _compute(logits: Array, tokens: Array, count: int) -> Results:
    x = logits.astype(jnp.float32)
    order = jnp.where(jnp.isnan(x), -jnp.inf, x)
    order = jnp.where(jnp.abs(order) < SMALLEST_NORMAL, 0.0, order)
    chosen = tokens[:, None]
    ids = jnp.concatenate([chosen, lax.top_k(order, count)[1]], axis=1)
    best = jnp.max(order, axis=1, keepdims=True)
    total = jnp.sum(jnp.exp(x - best), axis=1, keepdims=True)
    inside = jnp.clip(ids, 0, x.shape[1] - 1)  # a sampled token may be out of range
    values = (jnp.take_along_axis(x, inside, axis=1) - best) - jnp.log(total)
    rank = jnp.sum(order >= jnp.take_along_axis(order, inside[:, :1], axis=1), axis=1, dtype=jnp.int32)
    return ids, values, rank
