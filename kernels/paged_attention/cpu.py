"""`fxhlo.ragged_paged_attention` on the CPU: the C++ kernel of runtime/core/native through XLA's FFI."""

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


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    dtypes = {operand.dtype.name for operand in operands[:4]}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        return f"query, key, value and cache are {', '.join(sorted(dtypes))}; the native kernel takes {' or '.join(DTYPES)}, all alike"
    if "k_scale" in operands.named or "v_scale" in operands.named:
        return "the cache has scales, which the native kernel does not know"
    if operands[0].shape[2] > 576:
        return f"head size {operands[0].shape[2]} is over 576"
    return native.planned()


def lower(
    query: Array, key: Array, value: Array, kv_cache: Array, slot_mapping: Array, block_tables: Array, seq_lens: Array,
    query_start_loc: Array, sinks: Array | None = None, alibi_slopes: Array | None = None, *, scale: float, sliding_window: int, soft_cap: float,
    chunk: int = 0,
) -> tuple[Array, Array]:  # fmt: skip
    """Operands and results as in reference.py; the cache is updated in place."""
    absent = jnp.zeros((0,), jnp.float32)
    sinks = absent if sinks is None else sinks.astype(jnp.float32)
    alibi_slopes = absent if alibi_slopes is None else alibi_slopes.astype(jnp.float32)
    call = jax.ffi.ffi_call(
        "fxhlo_ragged_paged_attention",
        (jax.ShapeDtypeStruct(query.shape, query.dtype), jax.ShapeDtypeStruct(kv_cache.shape, kv_cache.dtype)),
        input_output_aliases={3: 1},
    )
    attended, updated = call(
        query, key, value, kv_cache, slot_mapping, block_tables, seq_lens, query_start_loc, sinks, alibi_slopes,
        scale=np.float32(scale), sliding_window=np.int64(sliding_window), soft_cap=np.float32(soft_cap),
        chunk=np.int64(chunk),
    )  # fmt: skip
    return attended, updated
