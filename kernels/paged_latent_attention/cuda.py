"""`fxhlo.ragged_paged_latent_attention` on CUDA: the Pallas kernels of `fxhlo.ragged_paged_attention`, in the absorbed form, for steps with few rows a request.

All heads of a row multiply the same keys, whose first part is their value. The projections are applied by XLA.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ...runtime.core.plugins import without_triton
from ...runtime.core.targets import Target
from ..paged_attention.cuda import write
from ..paged_attention.cuda_attend import Layout, Meaning, attend
from ..paged_attention.cuda_tiles import shared_of
from ..spec import Operands, TensorSpec
from .cuda_tiles import LATENTS, QUERIES, ROTARY, ROWS_A_REQUEST, tiles_for


def supports(operands: Operands, attributes: Mapping[str, Any], target: Target) -> str | None:
    named = operands.named
    query, requests, latent = named["query"], named["block_tables"].shape[0], named["w_uv"].shape[1]
    tokens = query.shape[0]
    rotary = named["kv_cache"].shape[2] - latent
    if "selected" in named:
        return "it has selected positions"
    floating = {named[name].dtype.name for name in ("query", "latent", "w_uk", "w_uv", "kv_cache")}
    if len(floating) > 1 or not floating <= set(QUERIES):
        return f"query, latent, projections and cache are {', '.join(sorted(floating))}, not all {', all '.join(QUERIES[:-1])} or all {QUERIES[-1]}"
    if latent not in LATENTS or rotary not in ROTARY:
        return f"a latent of {latent} and {rotary} rotary numbers is not within {LATENTS[-1]} and {ROTARY[-1]}, or below {LATENTS[0]}"
    if tokens > ROWS_A_REQUEST * requests:
        return f"{tokens} rows of {requests} requests take fewer operations in the decompressed form"
    if tiles_for(named["query"], named["kv_cache"], latent, *named["block_tables"].shape, shared_of(target)) is None:
        return f"rows of {latent} + {rotary} {query.dtype.name} do not fit the shared memory of {target}"
    return without_triton()


def lower(
    query: Array, latent: Array, w_uk: Array, w_uv: Array, kv_cache: Array, slot_mapping: Array, block_tables: Array, seq_lens: Array,
    query_start_loc: Array, *, scale: float, sliding_window: int = 0, target: Target,
) -> tuple[Array, Array]:  # fmt: skip
    """Operands and results as in reference.py; the cache is updated in place."""
    _, nope, size = w_uk.shape
    rows = kv_cache[:, :, None]  # one row a token
    rows = write((latent[:, None],), rows, slot_mapping)
    absorbed = jnp.concatenate([_projected("tnp,npl->tnl", query[..., :nope], w_uk), query[..., nope:]], axis=2)
    specs = [TensorSpec(array.shape, array.dtype) for array in (query, kv_cache)]
    tiles = tiles_for(*specs, size, *block_tables.shape, shared_of(target))
    if tiles is None:
        raise ValueError("call what supports() admits")
    layout = Layout(((0, size), (size, kv_cache.shape[2] - size)), pairs=False)
    meaning = Meaning(scale, sliding_window, chunk=0, soft_cap=0.0)
    attended = attend(absorbed, rows, block_tables, seq_lens, query_start_loc, {}, meaning, layout, tiles)
    return _projected("tnl,nlv->tnv", attended, w_uv), rows.reshape(kv_cache.shape)


def _projected(equation: str, rows: Array, weights: Array) -> Array:
    """Rows times each head's projection, in their dtype; the sums are float32."""
    precision = jax.lax.Precision.HIGHEST if rows.dtype == jnp.float32 else None
    return jnp.einsum(equation, rows, weights, precision=precision)
