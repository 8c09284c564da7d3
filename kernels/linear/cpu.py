"""`fxhlo.linear` on the CPU: the C++ kernel of runtime/core/native through XLA's FFI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ...runtime.core import native
from ..spec import Operands

DTYPES = ("float32", "bfloat16", "float16")


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    dtypes = {operand.dtype.name for name, operand in operands.named.items() if name != "used"}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        return f"operands are {', '.join(sorted(dtypes))}; the native kernel takes {' or '.join(DTYPES)}, all alike"
    return native.planned()


def lower(values: Array, weight: Array, bias: Array | None = None, used: Array | None = None) -> Array:
    """values [M, K], weight [N, K], bias [N] -> [M, N]; rows from `used` on are zero."""
    result = jax.ShapeDtypeStruct((values.shape[0], weight.shape[0]), values.dtype)
    if used is not None:
        bias = jnp.zeros(0, values.dtype) if bias is None else bias
        return jax.ffi.ffi_call("fxhlo_linear_used", result)(values, weight, bias, used)
    if bias is None:
        return jax.ffi.ffi_call("fxhlo_linear", result)(values, weight)
    return jax.ffi.ffi_call("fxhlo_linear_bias", result)(values, weight, bias)
