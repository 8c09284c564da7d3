"""`fxhlo.varlen_attention` on the CPU: the C++ kernel of runtime/core/native through XLA's FFI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...runtime.core import native
from ..spec import Operands

DTYPES = ("float32", "bfloat16", "float16")
LARGEST_HEAD = 576


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    dtypes = {operand.dtype.name for operand in operands[:3]}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        return f"query, key and value are {', '.join(sorted(dtypes))}; the native kernel takes {' or '.join(DTYPES)}, all alike"
    (_, heads, size), kv_heads = operands[0].shape, operands[1].shape[1]
    if heads % kv_heads:
        return f"{heads} query heads are no multiple of {kv_heads} KV heads"
    return f"head size {size} is over {LARGEST_HEAD}" if size > LARGEST_HEAD else native.planned()


def lower(
    query: Array, key: Array, value: Array, query_start_loc: Array, sinks: Array | None = None, *, scale: float,
    sliding_window: int, soft_cap: float, causal: bool,
) -> Array:  # fmt: skip
    """Operands and result as in reference.py."""
    sinks = jnp.zeros((0,), jnp.float32) if sinks is None else sinks.astype(jnp.float32)
    call = jax.ffi.ffi_call("fxhlo_varlen_attention", jax.ShapeDtypeStruct(query.shape, query.dtype))
    return call(
        query, key, value, query_start_loc, sinks, scale=np.float32(scale), sliding_window=np.int64(sliding_window),
        soft_cap=np.float32(soft_cap), causal=np.bool_(causal),
    )  # fmt: skip
