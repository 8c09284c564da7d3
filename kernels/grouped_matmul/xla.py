"""`fxhlo.grouped_matmul` in plain JAX: a loop over blocks of rows that reads the weights only of groups that have rows. For every target."""

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
    return product(values, weights, sizes).astype(values.dtype)


def product(values: Array, weights: Array, sizes: Array) -> Array:
    """As `lower`, in float32 (or float64), unrounded.

    A group takes ceil(its rows / block) blocks, and the loop ends after the last: at most M + G * block rows are multiplied, not G * M.
    A group's last block runs over into the rows of the next, which are written again by their own block.
    """
    (rows, groups), wide = (values.shape[0], weights.shape[0]), jnp.promote_types(values.dtype, jnp.float32)
    if not rows or not groups:
        return jnp.zeros((rows, weights.shape[1]), wide)
    block = block_of(rows, groups)
    blocks = (sizes + block - 1) // block
    ends, starts = jnp.cumsum(blocks), jnp.cumsum(sizes) - sizes
    padded = jnp.pad(values, ((0, block), (0, 0)))

    def multiply(index: Array, result: Array) -> Array:
        group = jnp.sum(ends <= index)
        first = starts[group] + (index - ends[group] + blocks[group]) * block
        some = lax.dynamic_slice_in_dim(padded, first, block)
        # Without the barrier XLA's CPU backend, which slices no two-byte floats, makes float32 of all weights before the loop.
        group, every = lax.optimization_barrier((group, weights))
        weight = lax.dynamic_index_in_dim(every, group, keepdims=False)
        one = lax.dot_general(
            some, weight, (((1,), (1,)), ((), ())), precision=precision(values), preferred_element_type=wide
        )
        return lax.dynamic_update_slice_in_dim(result, one, first, 0)

    zero = jnp.zeros((rows + block, weights.shape[1]), wide)
    result = lax.fori_loop(0, ends[-1], multiply, zero)[:rows]
    return jnp.where(lax.broadcasted_iota(sizes.dtype, (rows, 1), 0) < jnp.sum(sizes), result, 0)


def block_of(rows: int, groups: int) -> int:
    """Rows of a block: about the mean of a group; at least 8, since CPUs multiply a single row badly, and at most 128."""
    return min(max(8, 1 << (rows // groups).bit_length()), 128)


def precision(values: Array) -> lax.Precision:
    """Dot precision: by default a TPU multiplies float32 in a single bfloat16 pass."""
    return lax.Precision.HIGHEST if values.dtype == jnp.float32 else lax.Precision.DEFAULT
