"""`fxhlo.grouped_matmul` in plain JAX: a loop over groups that multiplies all rows by each weight. For every target; fast only for few groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from ..spec import Operands


def supports(operands: Operands, attributes: Mapping[str, Any]) -> None:
    """Supports everything that the schema allows."""


def lower(values: Array, weights: Array, sizes: Array) -> Array:
    """Operands and result as in `reference.grouped_matmul`."""
    rows = lax.broadcasted_iota(sizes.dtype, (values.shape[0], 1), 0)
    ends = jnp.cumsum(sizes)

    def add(result: Array, group: tuple[Array, Array, Array]) -> tuple[Array, None]:
        weight, start, end = group
        product = lax.dot_general(
            values, weight, (((1,), (1,)), ((), ())), precision=precision(values), preferred_element_type=jnp.float32
        )
        return jnp.where((rows >= start) & (rows < end), product, result), None

    zero = jnp.zeros((values.shape[0], weights.shape[1]), jnp.float32)
    return lax.scan(add, zero, (weights, ends - sizes, ends))[0].astype(values.dtype)


def precision(values: Array) -> lax.Precision:
    """Dot precision: by default a TPU multiplies float32 in a single bfloat16 pass."""
    return lax.Precision.HIGHEST if values.dtype == jnp.float32 else lax.Precision.DEFAULT
