"""`fxhlo.ragged_paged_attention` on TPU: two Pallas kernels.

`write` puts this step's keys and values into the cache, row by row, by DMA; the cache is aliased, so that nothing else of it
moves. `attend` (tpu_attend.py) reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...runtime.core.targets import Target
from ..spec import Operands, TensorSpec
from .tuning import blocks_for, refusal
from .xla import stored


def supports(operands: Operands, attributes: Mapping[str, Any], target: Target) -> str | None:
    return refusal(operands.named, target)


def ragged_paged_attention(
    query: Any, key: Any, value: Any, kv_cache: Any, slot_mapping: Any, block_tables: Any, seq_lens: Any, query_start_loc: Any,
    sinks: Any = None, alibi_slopes: Any = None, k_scale: Any = None, v_scale: Any = None, *, scale: float, sliding_window: int, soft_cap: float,
    target: Target,
) -> tuple[Any, Any]:  # fmt: skip
    """Operands and results as in reference.py; the cache is updated in place."""
    import jax.numpy as jnp

    from .tpu_attend import Meaning, attend

    heads, kv_heads = query.shape[1], kv_cache.shape[2] // 2
    rows = [stored(key, k_scale, kv_cache.dtype), stored(value, v_scale, kv_cache.dtype)]
    new = jnp.stack(rows, axis=2).reshape(-1, *kv_cache.shape[2:])
    kv_cache = write(new, kv_cache, slot_mapping)
    optional = {
        "sinks": (sinks, heads),
        "slopes": (alibi_slopes, heads),
        "k": (k_scale, kv_heads),
        "v": (v_scale, kv_heads),
    }
    present = {
        name: (numbers, size) for name, (numbers, size) in optional.items() if numbers is not None and numbers.size
    }
    columns = [jnp.broadcast_to(numbers.astype(jnp.float32), (size,)) for numbers, size in present.values()]
    per_head = jnp.concatenate([*columns, jnp.zeros(1)])
    specs = [TensorSpec(array.shape, array.dtype) for array in (query, kv_cache)]
    blocks = blocks_for(*specs, block_tables.shape[1], target)
    if blocks is None:
        raise ValueError("call what supports() admits")
    output = attend(
        (block_tables.reshape(-1), seq_lens, query_start_loc, per_head), query, kv_cache,
        Meaning(scale, sliding_window, soft_cap, tuple((name, size) for name, (_, size) in present.items())),
        blocks, target.cores,
    )  # fmt: skip
    return output, kv_cache


def write(new: Any, kv_cache: Any, slot_mapping: Any) -> Any:
    """The cache with row t of `new` [T, 2 * Hkv, D] at slot_mapping[t]; slots outside it are dropped."""
    import jax
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

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
