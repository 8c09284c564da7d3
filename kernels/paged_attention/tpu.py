"""`fxhlo.ragged_paged_attention` on TPU: two Pallas kernels.

`write` copies this step's keys and values into the cache, row by row, by DMA; the cache is aliased, so that the rest of it is
not copied. `attend` (tpu_attend.py) reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ...runtime.core.targets import Target
from ..spec import Operands, TensorSpec
from .tpu_attend import attend
from .tpu_batch import Meaning
from .tuning import BLOCK_SIZES, CACHES, HEAD_SIZES, QUERIES, SMEM_SLACK, blocks_for
from .xla import numbers_per_head, stored


def supports(operands: Operands, attributes: Mapping[str, Any], target: Target) -> str | None:
    query, kv_cache, tables = (operands.named[name] for name in ("query", "kv_cache", "block_tables"))
    tokens, heads, head_size = query.shape
    _, block_size, pairs, _ = kv_cache.shape
    if pairs % 2 or heads % (pairs // 2):
        return f"{heads} query heads are no multiple of {pairs / 2:g} KV heads"
    if query.dtype.name not in QUERIES or {operands.named["key"].dtype, operands.named["value"].dtype} != {query.dtype}:
        return f"query, key and value are not all {' or all '.join(QUERIES)}"
    if kv_cache.dtype.name not in CACHES:
        return f"the cache is {kv_cache.dtype.name}, not one of {', '.join(CACHES)}"
    if head_size not in HEAD_SIZES:
        return f"head size {head_size} is no multiple of {HEAD_SIZES.step} up to {HEAD_SIZES[-1]}"
    if block_size not in BLOCK_SIZES:
        return f"pages of {block_size} tokens are not one of {', '.join(map(str, BLOCK_SIZES))}"
    for name in ("slot_mapping", "block_tables", "seq_lens", "query_start_loc"):
        if operands.named[name].dtype.name != "int32":
            return f"{name} is {operands.named[name].dtype.name}, not int32"
    scalars = 4 * (max(prod(tables.shape) + 2 * tables.shape[0] + 4 * heads, tokens))
    if scalars > target.smem - SMEM_SLACK:
        return f"block tables of {scalars:,} bytes exceed scalar memory: longer pages make them shorter"
    if blocks_for(query, kv_cache, tables.shape[1], target) is None:
        return f"{heads} heads of {head_size} with pages of {block_size} tokens do not fit the vector memory of {target.name}"
    return None


def lower(
    query: Array, key: Array, value: Array, kv_cache: Array, slot_mapping: Array, block_tables: Array, seq_lens: Array,
    query_start_loc: Array, sinks: Array | None = None, alibi_slopes: Array | None = None, k_scale: Array | None = None,
    v_scale: Array | None = None, *, scale: float, sliding_window: int, soft_cap: float, chunk: int = 0, target: Target,
) -> tuple[Array, Array]:  # fmt: skip
    """Operands and results as in reference.py; the cache is updated in place."""
    rows = [stored(key, k_scale, kv_cache.dtype), stored(value, v_scale, kv_cache.dtype)]
    new = jnp.stack(rows, axis=2).reshape(-1, *kv_cache.shape[2:])
    kv_cache = write(new, kv_cache, slot_mapping)
    present = numbers_per_head(query, kv_cache, sinks, alibi_slopes, k_scale, v_scale)
    per_head = jnp.concatenate([*present.values(), jnp.zeros(1)])
    specs = [TensorSpec(array.shape, array.dtype) for array in (query, kv_cache)]
    blocks = blocks_for(*specs, block_tables.shape[1], target)
    if blocks is None:
        raise ValueError("call what supports() admits")
    output = attend(
        (block_tables.reshape(-1), seq_lens, query_start_loc, per_head), query, kv_cache,
        Meaning(scale, sliding_window, chunk, soft_cap, tuple((name, len(numbers)) for name, numbers in present.items())),
        blocks, target.cores,
    )  # fmt: skip
    return output, kv_cache


def write(new: Array, kv_cache: Array, slot_mapping: Array) -> Array:
    """The cache with row t of `new` [T, 2 * Hkv, D] at slot_mapping[t]; slots outside it are dropped."""
    tokens = new.shape[0]
    blocks, block_size = kv_cache.shape[:2]

    def kernel(slots: Any, rows: Any, _: Any, cache: Any, arrived: Any) -> None:
        def each(act: Callable[[Any], None]) -> None:
            @pl.loop(0, tokens)
            def _(token: Any) -> None:
                slot = slots[token]

                @pl.when((slot >= 0) & (slot < blocks * block_size))
                def _() -> None:
                    into = cache.at[slot // block_size, slot % block_size]
                    act(pltpu.make_async_copy(rows.at[token], into, arrived))

        each(lambda copy: copy.start())
        each(lambda copy: copy.wait())

    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1, grid=(1,), in_specs=[anywhere, anywhere], out_specs=anywhere,
            scratch_shapes=[pltpu.SemaphoreType.DMA(())],
        ),
        out_shape=jax.ShapeDtypeStruct(kv_cache.shape, kv_cache.dtype),
        input_output_aliases={2: 0},
        compiler_params=pltpu.CompilerParams(has_side_effects=True, disable_bounds_checks=True),
        name="paged_attention_write",
    )(slot_mapping, new, kv_cache)  # fmt: skip
