"""`fxhlo.quantized_matmul` in JAX. The weight is converted to the values' dtype before the matmul; on TPU, XLA fuses the conversion into
the matmul, so that memory is read at the weight's width (measured in docs/kernels_considered.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from ..grouped_matmul.xla import precision
from ..spec import FLOAT8, Operands


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    values, weight = operands[:2]
    bits = attributes["bits"]
    if bits not in (4, 8):
        return f"a weight of {bits} bits; 4 and 8 are known"
    if weight.dtype.name not in (("int8",) if bits == 4 else ("int8", *FLOAT8)):
        return f"a weight of {weight.dtype} with {bits} bits"
    inputs = weight.shape[1] * 8 // bits
    return None if values.shape[1] == inputs else f"values have {values.shape[1]} inputs, the weight {inputs}"


def lower(values: Array, weight: Array, scale: Array, *, bits: int) -> Array:
    """Operands and result as in `reference.quantized_matmul`."""

    def product(values: Array, weight: Array) -> Array:
        wide = weight.astype(values.dtype)  # exact: bfloat16 holds every int8 and every float8
        return lax.dot_general(
            values, wide, (((1,), (1,)), ((), ())), precision=precision(values), preferred_element_type=jnp.float32
        )

    if bits == 8:
        return (product(values, weight) * scale).astype(values.dtype)
    half = weight.shape[1]
    both = product(values[:, :half], (weight << 4) >> 4) + product(values[:, half:], weight >> 4)
    return (both * scale).astype(values.dtype)
