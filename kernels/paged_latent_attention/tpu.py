"""`fxhlo.ragged_paged_latent_attention` on TPU: one Pallas kernel that reads the cache, in the absorbed form.

Its loop over requests, tiles of rows and blocks of keys, and its copies, are those of `fxhlo.ragged_paged_attention`; all heads of a row
multiply the same keys. The latents are written, and the projections applied, by XLA.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ...runtime.core.targets import LANES, Target
from ..paged_attention.tpu_attend import ANYWHERE, Loop
from ..paged_attention.tpu_batch import Batch, Meaning, Refs
from ..paged_attention.tpu_copies import Copies
from ..paged_attention.tuning import QUERIES, SMEM_SLACK, Blocks
from ..paged_attention.xla import write_rows
from ..spec import Operands, TensorSpec
from .tpu_softmax import LatentSoftmax
from .tuning import BLOCK_SIZES, blocks_for, padded_heads


def supports(operands: Operands, attributes: Mapping[str, Any], target: Target) -> str | None:
    named = operands.named
    query, kv_cache, tables = (named[name] for name in ("query", "kv_cache", "block_tables"))
    latent, block_size = named["w_uv"].shape[1], kv_cache.shape[1]
    if "selected" in named:
        return "it has selected positions"
    floating = {named[name].dtype.name for name in ("query", "latent", "w_uk", "w_uv", "kv_cache")}
    if len(floating) > 1 or not floating <= set(QUERIES):
        return f"query, latent, projections and cache are {', '.join(sorted(floating))}, not all {' or all '.join(QUERIES)}"
    if latent % LANES:
        return f"a latent of {latent} is no multiple of {LANES}"
    if block_size not in BLOCK_SIZES:
        return f"pages of {block_size} tokens are not one of {', '.join(map(str, BLOCK_SIZES))}"
    scalars = 4 * (prod(tables.shape) + 2 * tables.shape[0])
    if scalars > target.smem - SMEM_SLACK:
        return f"block tables of {scalars:,} bytes exceed scalar memory: longer pages make them shorter"
    if blocks_for(query, kv_cache, latent, tables.shape[1], target) is None:
        return (
            f"{query.shape[1]} heads on a latent of {kv_cache.shape[2]} do not fit the vector memory of {target.name}"
        )
    return None


def lower(
    query: Array, latent: Array, w_uk: Array, w_uv: Array, kv_cache: Array, slot_mapping: Array, block_tables: Array, seq_lens: Array,
    query_start_loc: Array, *, scale: float, sliding_window: int = 0, target: Target,
) -> tuple[Array, Array]:  # fmt: skip
    """Operands and results as in reference.py; the cache is updated in place."""
    _, heads, _ = query.shape
    _, nope, size = w_uk.shape
    kv_cache = write_rows(latent, kv_cache, slot_mapping, as_bits=False)
    inside = projected("tnp,npl->tnl", query[..., :nope], w_uk)
    absorbed = jnp.concatenate([inside, query[..., nope:]], axis=2)
    absorbed = jnp.pad(absorbed, ((0, 0), (0, padded_heads(heads) - heads), (0, 0)))
    specs = [TensorSpec(array.shape, array.dtype) for array in (query, kv_cache)]
    blocks = blocks_for(*specs, size, block_tables.shape[1], target)
    if blocks is None:
        raise ValueError("call what supports() admits")
    scalars = (block_tables.reshape(-1), seq_lens, query_start_loc)
    meaning = Meaning(scale, sliding_window, 0, 0.0, ())
    attended = attend(scalars, absorbed, kv_cache, size, meaning, blocks, target.cores)
    return projected("tnl,nlv->tnv", attended[:, :heads], w_uv), kv_cache


def projected(equation: str, rows: Array, weights: Array) -> Array:
    """Rows times each head's projection, in their dtype: on a TPU the sums are float32 all the same."""
    precision = jax.lax.Precision.HIGHEST if rows.dtype == jnp.float32 else None
    return jnp.einsum(equation, rows, weights, precision=precision)


def attend(
    scalars: tuple[Array, ...], query: Array, kv_cache: Array, latent: int, meaning: Meaning, blocks: Blocks, cores: int
) -> Array:
    """Rows [T, N, latent] of what the heads attend to. scalars: flattened block_tables, seq_lens, query_start_loc; query
    [T, N, latent + rotary], N a multiple of 16."""
    tokens, heads, size = query.shape
    two = pltpu.SemaphoreType.DMA((2,))

    def kernel(
        tables: Any, lengths: Any, starts: Any, query: Any, cache: Any, output: Any, pages: Any, tiles_in: Any, tiles_out: Any,
        highest: Any, total: Any, sums: Any, pages_here: Any, tile_here: Any, tile_gone: Any, leaving: Any,
    ) -> None:  # fmt: skip
        refs = Refs(
            tables, lengths, starts, None, query, cache, output, pages, None, tiles_in, None, tiles_out, highest, total, sums,
            pages_here, tile_here, tile_gone, leaving,
        )  # fmt: skip
        batch = Batch(refs, meaning, blocks, cores, kv_heads=1)
        copies = Copies(batch)
        Loop(batch, copies, LatentSoftmax(batch, copies)).run()

    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars), grid=(cores,), in_specs=[ANYWHERE, ANYWHERE], out_specs=ANYWHERE,
            scratch_shapes=[
                pltpu.VMEM((2, blocks.keys, size), kv_cache.dtype),
                pltpu.VMEM((2, blocks.tile, heads, size), query.dtype),
                pltpu.VMEM((2, blocks.tile, heads, latent), query.dtype),
                pltpu.VMEM((blocks.rows, 128), jnp.float32),
                pltpu.VMEM((blocks.rows, 128), jnp.float32),
                pltpu.VMEM((blocks.rows, latent), jnp.float32),
                two, two, two, pltpu.SMEM((2,), jnp.int32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct((tokens, heads, latent), query.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=blocks.vmem * 5 // 4, disable_bounds_checks=True
        ),
        name="paged_latent_attention",
    )(*scalars, query, kv_cache)  # fmt: skip
