"""`fxhlo.copy_row` on the CPU: the C++ kernel of runtime/core/native through XLA's FFI.

XLA's CPU compiler converts arrays of 16-bit floats to float32 and back, whole, around what moves a part of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax import Array

from ...runtime.core import native
from ..spec import Operands


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    return native.planned()


def lower(state: Array, source: Array, destination: Array) -> Array:
    """state [R, ...], source and destination [] -> [R, ...], updated in place."""
    result = jax.ShapeDtypeStruct(state.shape, state.dtype)
    return jax.ffi.ffi_call("fxhlo_copy_row", result, input_output_aliases={0: 0})(state, source, destination)
