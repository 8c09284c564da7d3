"""`fxhlo.rms_norm` on the CPU: the C++ kernel of runtime/core/native through XLA's FFI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import Array

from ...runtime.core import native
from ..spec import Operands

DTYPES = ("float32", "bfloat16", "float16")


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    values, weight = operands
    if weight.dtype.name not in DTYPES or values.dtype.name not in (weight.dtype.name, "float32"):
        return f"operands are {values.dtype.name} and {weight.dtype.name}; the native kernel takes {' or '.join(DTYPES)}, or values in float32"
    return native.planned()


def lower(values: Array, weight: Array, epsilon: float) -> Array:
    """values [..., K], weight [K] -> [..., K] of the weight's dtype."""
    result = jax.ShapeDtypeStruct(values.shape, weight.dtype)
    return jax.ffi.ffi_call("fxhlo_rms_norm", result)(values, weight, epsilon=np.float32(epsilon))
