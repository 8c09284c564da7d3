"""`fxhlo.process_logits` on the CPU: the C++ kernel of runtime/core/native through XLA's FFI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax import Array

from ...runtime.core import native
from ..spec import Operands

PARAMETERS = (
    "flags", "allowed_mask", "bias_ids", "bias_values", "seen_ids", "seen_counts",
    "repetition_penalty", "frequency_penalty", "presence_penalty",
)  # fmt: skip
"""The operands after the logits, in the C++ function's order."""
DTYPES = ("float32", "bfloat16", "float16")


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    if operands[0].dtype.name not in DTYPES:
        return f"logits are {operands[0].dtype}; the native kernel takes {', '.join(DTYPES)}"
    return native.planned()


def lower(logits: Array, **parameters: Array) -> Array:
    """Operands and result as in `reference.process_logits`."""
    result = jax.ShapeDtypeStruct(logits.shape, "float32")
    return jax.ffi.ffi_call("fxhlo_process_logits", result)(logits, *(parameters[name] for name in PARAMETERS))
