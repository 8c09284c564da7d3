"""`fxhlo.ragged_paged_latent_attention` on the CPU: the C++ kernel of runtime/core/native through XLA's FFI.

With `selected`, each row is a request to it, whose pages hold one token: the ones in its list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...runtime.core import native
from ..spec import Operands
from .xla import selected_slots
from .xla import supports as supports_masks

DTYPES = ("float32", "bfloat16", "float16")
LARGEST = 576
FORMS = {"cheaper": 0, "absorbed": 1, "decompressed": 2}


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    named = operands.named
    dtypes = {named[name].dtype.name for name in ("query", "latent", "w_uk", "w_uv", "kv_cache")}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        return f"query, latent, projections and cache are {', '.join(sorted(dtypes))}; the native kernel takes {' or '.join(DTYPES)}, all alike"
    sizes = {
        "a query": named["query"].shape[2],
        "a latent": named["latent"].shape[1],
        "a value": named["w_uv"].shape[2],
    }
    for what, size in sizes.items():
        if size > LARGEST:
            return f"{what} of {size} is over {LARGEST}"
    return supports_masks(operands, attributes) or native.planned()


def lower(
    query: Array, latent: Array, w_uk: Array, w_uv: Array, kv_cache: Array, slot_mapping: Array, block_tables: Array, seq_lens: Array,
    query_start_loc: Array, selected: Array | None = None, *, scale: float, sliding_window: int = 0, form: str = "cheaper",
) -> tuple[Array, Array]:  # fmt: skip
    """Operands and results as in reference.py; the cache is updated in place. form: of FORMS; "cheaper" chooses for each request."""
    tokens, heads, _ = query.shape
    shape = kv_cache.shape
    if selected is not None:
        block_tables, seq_lens = selected_slots(selected, block_tables, seq_lens, query_start_loc, shape[1])
        query_start_loc = jnp.arange(tokens + 1, dtype=jnp.int32)
        kv_cache = kv_cache.reshape(-1, 1, shape[2])
    call = jax.ffi.ffi_call(
        "fxhlo_ragged_paged_latent_attention",
        (
            jax.ShapeDtypeStruct((tokens, heads, w_uv.shape[2]), query.dtype),
            jax.ShapeDtypeStruct(kv_cache.shape, kv_cache.dtype),
        ),
        input_output_aliases={4: 1},
    )
    attended, updated = call(
        query, latent, w_uk, w_uv, kv_cache, slot_mapping, block_tables, seq_lens, query_start_loc,
        scale=np.float32(scale), sliding_window=np.int64(sliding_window), form=np.int64(FORMS[form]),
    )  # fmt: skip
    return attended, updated.reshape(shape)
