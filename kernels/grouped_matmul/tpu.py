"""`fxhlo.grouped_matmul` on TPU: XLA's ragged dot, which reads a group's weight only for the group's rows.

docs/kernels_considered.md compares it with a loop over all groups and with JAX's Pallas kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from ..spec import Operands


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    values, weights = operands[:2]
    if values.dtype.name != "bfloat16" or weights.dtype != values.dtype:
        return f"operands are {values.dtype} and {weights.dtype}; the ragged product is known to be exact for bfloat16"
    if min(*values.shape, *weights.shape) < 1:
        return "an operand is empty"
    return None


def lower(values: Array, weights: Array, sizes: Array) -> Array:
    """Operands and result as in `reference.grouped_matmul`."""
    dimensions = lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((1,), (2,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[0]
    )
    product = lax.ragged_dot_general(values, weights, sizes, dimensions, preferred_element_type=jnp.float32)
    rows = lax.broadcasted_iota(jnp.int32, (values.shape[0], 1), 0)
    return jnp.where(rows < jnp.sum(sizes), product, 0.0).astype(values.dtype)  # rows past the last group are undefined
