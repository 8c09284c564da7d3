"""`fxhlo.rms_norm` on the CPU: the C++ kernel of runtime/native through XLA's FFI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec import TensorSpec

DTYPES = ("float32", "bfloat16")


def supports(operands: tuple[TensorSpec, ...], attributes: Mapping[str, Any]) -> str | None:
    values, weight = operands
    if not {values.dtype.name, weight.dtype.name} <= set(DTYPES) or values.dtype.itemsize < weight.dtype.itemsize:
        return f"operands are {values.dtype.name} and {weight.dtype.name}; the native kernel takes {' or '.join(DTYPES)}, the weight no wider"
    from ...runtime import native

    return native.unavailable()


def rms_norm(values: Any, weight: Any, epsilon: float) -> Any:
    """values [..., K], weight [K] -> [..., K] of the weight's dtype."""
    import jax
    import numpy as np

    from ...runtime import native

    native.register()
    result = jax.ShapeDtypeStruct(values.shape, weight.dtype)
    return jax.ffi.ffi_call("fxhlo_rms_norm", result)(values, weight, epsilon=np.float32(epsilon))
