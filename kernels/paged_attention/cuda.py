"""`fxhlo.ragged_paged_attention` on CUDA: two Pallas kernels, which Triton compiles.

`write` puts this step's keys and values into the cache where it lies; `attend` (cuda_attend.py) reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from ...runtime.core.plugins import without_triton
from ...runtime.core.targets import Target
from ..spec import FLOAT8, Operands, TensorSpec
from .cuda_attend import Layout, Meaning, attend
from .cuda_tiles import CACHES, HEAD_SIZES, QUERIES, power_of_two, shared_of, tiles_for
from .xla import numbers_per_head, stored

BYTES_ADDRESSED = 2**31
"""Pallas addresses operands of up to 4 GiB by signed numbers of 32 bits: those of one byte fit up to half of that."""


CONVERTS_FLOAT8 = (8, 9)
"""The first compute capability whose instructions convert 8-bit floats."""


def supports(operands: Operands, attributes: Mapping[str, Any], target: Target) -> str | None:
    query, kv_cache = operands.named["query"], operands.named["kv_cache"]
    _, heads, head_size = query.shape
    pairs = kv_cache.shape[2]
    if pairs % 2 or heads % (pairs // 2):
        return f"{heads} query heads are no multiple of {pairs / 2:g} KV heads"
    if query.dtype.name not in QUERIES or {operands.named["key"].dtype, operands.named["value"].dtype} != {query.dtype}:
        return f"query, key and value are not all {', all '.join(QUERIES[:-1])} or all {QUERIES[-1]}"
    if kv_cache.dtype.name not in CACHES:
        return f"the cache is {kv_cache.dtype.name}, not one of {', '.join(CACHES)}"
    if kv_cache.dtype.name in FLOAT8 and (target.gpu is None or target.gpu.capability < CONVERTS_FLOAT8):
        return f"the cache is {kv_cache.dtype.name}, which {target} is not known to convert"
    if kv_cache.dtype.itemsize == 1 and BYTES_ADDRESSED < prod(kv_cache.shape) <= 2 * BYTES_ADDRESSED:
        return "a cache of one byte a number and between 2 and 4 GiB is addressed wrongly by Pallas"
    if head_size not in HEAD_SIZES:
        return f"head size {head_size} is not within {HEAD_SIZES[0]} and {HEAD_SIZES[-1]}"
    for name in ("slot_mapping", "block_tables", "seq_lens", "query_start_loc"):
        if operands.named[name].dtype.name != "int32":
            return f"{name} is {operands.named[name].dtype.name}, not int32"
    return without_triton()


def lower(
    query: Array, key: Array, value: Array, kv_cache: Array, slot_mapping: Array, block_tables: Array, seq_lens: Array,
    query_start_loc: Array, sinks: Array | None = None, alibi_slopes: Array | None = None, k_scale: Array | None = None,
    v_scale: Array | None = None, *, scale: float, sliding_window: int, soft_cap: float, chunk: int = 0, target: Target,
) -> tuple[Array, Array]:  # fmt: skip
    """Operands and results as in reference.py; the cache is updated in place."""
    new = (stored(key, k_scale, kv_cache.dtype), stored(value, v_scale, kv_cache.dtype))
    kv_cache = write(new, kv_cache, slot_mapping)
    per_head = numbers_per_head(query, kv_cache, sinks, alibi_slopes, k_scale, v_scale)
    specs = [TensorSpec(array.shape, array.dtype) for array in (query, kv_cache)]
    tiles = tiles_for(*specs, *block_tables.shape, shared_of(target))
    meaning, layout = Meaning(scale, sliding_window, chunk, soft_cap), Layout(((0, query.shape[2]),), pairs=True)
    output = attend(query, kv_cache, block_tables, seq_lens, query_start_loc, per_head, meaning, layout, tiles)
    return output, kv_cache


def write(parts: Sequence[Array], cache: Array, slot_mapping: Array) -> Array:
    """The cache [blocks, block_size, n * heads, D] with the parts [T, heads, D] of row t at slot_mapping[t], those of a head one after the other; slots
    outside of it are dropped."""
    tokens, heads, size = parts[0].shape
    call = pl.pallas_call(
        partial(_write, heads=heads, size=size),
        grid=(tokens,),
        out_shape=jax.ShapeDtypeStruct(cache.shape, cache.dtype),
        input_output_aliases={len(parts) + 1: 0},
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        name="fxhlo_paged_attention_write",
    )
    return call(slot_mapping, *parts, cache)


def _write(slots: Any, *refs: Any, heads: int, size: int) -> None:
    *parts, _, cache = refs
    token, (blocks, block_size) = pl.program_id(0), cache.shape[:2]
    slot = slots[token]
    head = lax.broadcasted_iota(jnp.int32, (power_of_two(heads), power_of_two(size)), 0)
    at = lax.broadcasted_iota(jnp.int32, head.shape, 1)
    mask = (slot >= 0) & (slot < blocks * block_size) & (head < heads) & (at < size)
    page, offset = lax.div(slot, np.int32(block_size)), lax.rem(slot, np.int32(block_size))
    for place, rows in enumerate(parts):
        row = plgpu.load(rows.at[token, head, at], mask=mask)
        plgpu.store(cache.at[page, offset, len(parts) * head + place, at], row, mask=mask)
