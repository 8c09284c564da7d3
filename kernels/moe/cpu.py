"""`fxhlo.moe` on the CPU: the C++ kernel of runtime/core/native through XLA's FFI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...runtime.core import native
from ..spec import Operands
from .reference import GATED, PLAIN

DTYPES = ("float32", "bfloat16", "float16")
FLOATS = ("x", "w13", "w2", "w13_bias", "w2_bias")


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    dtypes = {spec.dtype.name for name, spec in operands.named.items() if name in FLOATS}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        return f"rows, weights and biases are {', '.join(sorted(dtypes))}; the native kernel takes {' or '.join(DTYPES)}, all alike"
    activation = attributes["activation"]
    if activation not in GATED and activation not in PLAIN:
        return f"{activation} is no activation of experts"
    return native.planned()


def lower(
    x: Array, w13: Array, w2: Array, topk_weights: Array, topk_ids: Array, w13_bias: Array | None = None, w2_bias: Array | None = None,
    *, activation: str, limit: float, alpha: float, beta: float, weight_on_input: bool,
) -> Array:  # fmt: skip
    """Operands and result as in `reference.moe`. Only experts that a row chose are read, in a decode step once."""
    w13_bias = jnp.zeros((0, w13.shape[1]), x.dtype) if w13_bias is None else w13_bias
    w2_bias = jnp.zeros((0, w2.shape[1]), x.dtype) if w2_bias is None else w2_bias
    return jax.ffi.ffi_call("fxhlo_moe", jax.ShapeDtypeStruct(x.shape, x.dtype))(
        x, w13, w2, topk_weights, topk_ids, w13_bias, w2_bias, activation=activation,
        limit=np.float32(limit), alpha=np.float32(alpha), beta=np.float32(beta), weight_on_input=np.bool_(weight_on_input),
    )  # fmt: skip
