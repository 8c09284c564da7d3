"""`fxhlo.logprobs` on the CPU: the C++ kernel of runtime/core/native through XLA's FFI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec import TensorSpec

DTYPES = ("float32", "bfloat16", "float16")


def supports(operands: tuple[TensorSpec, ...], attributes: Mapping[str, Any]) -> str | None:
    size, count = operands[0].shape[1], attributes["count"]
    if operands[0].dtype.name not in DTYPES:
        return f"logits are {operands[0].dtype}; the native kernel takes {', '.join(DTYPES)}"
    if count > size:
        return f"{count} tokens asked of a vocabulary of {size}"
    from ...runtime.core import native

    return native.unavailable()


def logprobs(logits: Any, tokens: Any, enabled: Any, *, count: int) -> Any:
    """Operands and results as in `reference.logprobs`."""
    import jax

    from ...runtime.core import native

    native.register()
    rows = logits.shape[0]
    results = (
        jax.ShapeDtypeStruct((rows, count + 1), "int32"),
        jax.ShapeDtypeStruct((rows, count + 1), "float32"),
        jax.ShapeDtypeStruct((rows,), "int32"),
    )
    return jax.ffi.ffi_call("fxhlo_logprobs", results)(logits, tokens, enabled)
