"""`fxhlo.sample` on the CPU: the C++ kernel of runtime/core/native through XLA's FFI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec import TensorSpec


def supports(operands: tuple[TensorSpec, ...], attributes: Mapping[str, Any]) -> str | None:
    logits = operands[0]
    if logits.dtype.name != "float32":
        return f"logits are {logits.dtype}, not float32"
    if logits.shape[1] < 1:
        return "the vocabulary is empty"
    from ...runtime.core import native

    return native.unavailable()


def sample(logits: Any, temperature: Any, top_k: Any, top_p: Any, min_p: Any, seeds: Any, steps: Any) -> Any:
    """Operands and result as in `reference.sample`."""
    import jax

    from ...runtime.core import native

    native.register()
    result = jax.ShapeDtypeStruct(logits.shape[:1], "int32")
    return jax.ffi.ffi_call("fxhlo_sample", result)(logits, temperature, top_k, top_p, min_p, seeds, steps)
