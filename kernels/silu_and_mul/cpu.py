"""`fxhlo.silu_and_mul` on the CPU: the C++ kernel of runtime/core/native through XLA's FFI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax import Array

from ...runtime.core import native
from ..spec import Operands

DTYPES = ("float32", "bfloat16", "float16")


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    (values,) = operands
    if values.dtype.name not in DTYPES:
        return f"the operand is {values.dtype.name}; the native kernel takes {' or '.join(DTYPES)}"
    return native.planned()


def lower(values: Array) -> Array:
    """values [M, 2 N] -> [M, N]."""
    result = jax.ShapeDtypeStruct((values.shape[0], values.shape[1] // 2), values.dtype)
    return jax.ffi.ffi_call("fxhlo_silu_and_mul", result)(values)
