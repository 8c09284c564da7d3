"""`fxhlo.sample` on the CPU: the C++ kernel of runtime/core/native through XLA's FFI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax import Array

from ...runtime.core import native
from ..spec import Operands


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    logits = operands[0]
    if logits.dtype.name != "float32":
        return f"logits are {logits.dtype}, not float32"
    if logits.shape[1] < 1:
        return "the vocabulary is empty"
    return native.planned()


def lower(
    logits: Array, temperature: Array, top_k: Array, top_p: Array, min_p: Array, seeds: Array, steps: Array
) -> Array:
    """Operands and result as in `reference.sample`."""
    result = jax.ShapeDtypeStruct(logits.shape[:1], "int32")
    return jax.ffi.ffi_call("fxhlo_sample", result)(logits, temperature, top_k, top_p, min_p, seeds, steps)
