"""`fxhlo.process_logits` in JAX: a stage runs only if its flag is set, and sparse stages only update their tokens.

Equal to `reference.py` bit for bit if division and multiplication are IEEE (all targets except TPU, whose division is not).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from ..spec import Operands


def masked(logits: Array, allowed_mask: Array) -> Array:
    """Sets logits [R, V] to -infinity where the bit in allowed_mask, int32 [R, ceil(V / 32)], is 0."""
    rows, size = logits.shape
    words = lax.broadcast_in_dim(allowed_mask, (*allowed_mask.shape, 32), (0, 1)).reshape(
        rows, 32 * allowed_mask.shape[1]
    )[:, :size]
    shifts = lax.broadcasted_iota(jnp.int32, logits.shape, 1) & 31
    return jnp.where((words >> shifts) & 1 != 0, logits, -jnp.inf)


def _separate(product: Array, zero: Array) -> Array:
    """Returns the product unchanged, in a way that keeps the compiler from fusing it with a subtraction (FMA)."""
    return lax.bitcast_convert_type(lax.bitcast_convert_type(product, jnp.int32) ^ zero, jnp.float32)


def _rows(ids: Array) -> Array:
    return lax.broadcasted_iota(jnp.int32, ids.shape, 0)


def _inside(ids: Array, size: int) -> Array:
    """Moves unused entries (-1) past the end, where a scatter drops them; JAX would take them as indices from the end."""
    return jnp.where(ids < 0, size, ids)


def supports(operands: Operands, attributes: Mapping[str, Any]) -> None:
    """Supports everything that the schema allows."""


def lower(
    logits: Array,
    flags: Array,
    allowed_mask: Array,
    bias_ids: Array,
    bias_values: Array,
    seen_ids: Array,
    seen_counts: Array,
    repetition_penalty: Array,
    frequency_penalty: Array,
    presence_penalty: Array,
) -> Array:
    """Operands and result as in `reference.process_logits`."""
    size = logits.shape[1]

    def bias(x: Array) -> Array:
        return x.at[_rows(bias_ids), _inside(bias_ids, size)].add(bias_values, mode="drop")

    def penalize(x: Array) -> Array:
        zero = jnp.minimum(flags[2], 0)  # 0, but the compiler cannot know that flags are 0 or 1
        ids = _inside(seen_ids, size)
        seen = x.at[_rows(ids), ids].get(mode="fill", fill_value=0.0)
        repetition, frequency, presence = (
            p[:, None] for p in (repetition_penalty, frequency_penalty, presence_penalty)
        )
        seen = _separate(seen * jnp.where(seen > 0, 1.0 / repetition, repetition), zero)
        seen = seen - _separate(frequency * seen_counts.astype(jnp.float32), zero)
        seen = seen - jnp.where(seen_counts > 0, presence, 0.0)
        return x.at[_rows(ids), ids].set(seen, mode="drop")

    x = logits.astype(jnp.float32)
    x = lax.cond(flags[0] != 0, lambda x: masked(x, allowed_mask), lambda x: x, x)
    x = lax.cond(flags[1] != 0, bias, lambda x: x, x)
    return lax.cond(flags[2] != 0, penalize, lambda x: x, x)
