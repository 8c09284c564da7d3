"""`fxhlo.logprobs` on the CPU: the C++ kernel of runtime/core/native through XLA's FFI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ...runtime.core import native
from ..spec import Operands

DTYPES = ("float32", "bfloat16", "float16")


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    size, count = operands[0].shape[1], attributes["count"]
    if operands[0].dtype.name not in DTYPES:
        return f"logits are {operands[0].dtype}; the native kernel takes {', '.join(DTYPES)}"
    if count > size:
        return f"{count} tokens asked of a vocabulary of {size}"
    return native.planned()


def lower(
    logits: Array, tokens: Array, enabled: Array, allowed_mask: Array | None = None, *, count: int
) -> tuple[Array, Array, Array]:
    """Operands and results as in `reference.logprobs`."""
    rows = logits.shape[0]
    results = (
        jax.ShapeDtypeStruct((rows, count + 1), "int32"),
        jax.ShapeDtypeStruct((rows, count + 1), "float32"),
        jax.ShapeDtypeStruct((rows,), "int32"),
    )

    mask = jnp.zeros((rows, 0), jnp.int32) if allowed_mask is None else allowed_mask
    ids, values, rank = jax.ffi.ffi_call("fxhlo_logprobs", results)(logits, tokens, enabled, mask)
    return ids, values, rank
