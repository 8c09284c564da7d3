"""`fxhlo.process_logits` on the CPU: the C++ kernel of runtime/core/native through XLA's FFI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec import TensorSpec

PARAMETERS = (
    "flags", "allowed_mask", "bias_ids", "bias_values", "seen_ids", "seen_counts",
    "repetition_penalty", "frequency_penalty", "presence_penalty",
)  # fmt: skip
"""The operands after the logits, in the order in which the C++ function takes them."""
DTYPES = ("float32", "bfloat16", "float16")


def supports(operands: tuple[TensorSpec, ...], attributes: Mapping[str, Any]) -> str | None:
    if operands[0].dtype.name not in DTYPES:
        return f"logits are {operands[0].dtype}; the native kernel takes {', '.join(DTYPES)}"
    from ...runtime.core import native

    return native.unavailable()


def process_logits(logits: Any, **parameters: Any) -> Any:
    """Operands and result as in `reference.process_logits`."""
    import jax

    from ...runtime.core import native

    native.register()
    result = jax.ShapeDtypeStruct(logits.shape, "float32")
    return jax.ffi.ffi_call("fxhlo_process_logits", result)(logits, *(parameters[name] for name in PARAMETERS))
