"""`fxhlo.linear` on the CPU: the C++ kernel of runtime/core/native through XLA's FFI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec import TensorSpec

DTYPES = ("float32", "bfloat16", "float16")


def supports(operands: tuple[TensorSpec, ...], attributes: Mapping[str, Any]) -> str | None:
    dtypes = {operand.dtype.name for operand in operands}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        return f"operands are {', '.join(sorted(dtypes))}; the native kernel takes {' or '.join(DTYPES)}, all alike"
    from ...runtime.core import native

    return native.unavailable()


def linear(values: Any, weight: Any, bias: Any = None) -> Any:
    """values [M, K], weight [N, K], bias [N] -> [M, N]."""
    import jax

    from ...runtime.core import native

    native.register()
    result = jax.ShapeDtypeStruct((values.shape[0], weight.shape[0]), values.dtype)
    if bias is None:
        return jax.ffi.ffi_call("fxhlo_linear", result)(values, weight)
    return jax.ffi.ffi_call("fxhlo_linear_bias", result)(values, weight, bias)
