"""`fxhlo.linear` in JAX: one product with the weight as it lies, which a TPU does not round on the way."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax


def linear(values: Array, weight: Array, bias: Array | None = None) -> Array:
    """values [M, K], weight [N, K], bias [N] -> [M, N].

    A TPU multiplies float32 in one pass of bfloat16 unless it is told not to; products of bfloat16 are added up in
    float32 either way.
    """
    precision = lax.Precision.HIGHEST if values.dtype == jnp.float32 else lax.Precision.DEFAULT
    product = lax.dot_general(values, weight, (((1,), (1,)), ((), ())), precision=precision)
    return product if bias is None else product + bias
