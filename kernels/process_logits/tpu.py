"""`fxhlo.process_logits` in Pallas for TPU: reads the logits once and writes the result once, in the default layout.

Equal to `reference.py` bit for bit. Mask words are broadcast over lanes in registers. The sparse lists (bias, seen tokens)
are copied to SMEM in parts, up to the last used entry, and applied in place to the block in VMEM: time depends
on the used entries, whereas a scatter would process the full width of the lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ...runtime.core.targets import LANES, SUBLANES, Target
from ..sample.tuning import too_large
from ..sample.xla_arithmetic import bits_of, divided, float_of, unordered
from ..spec import Operands
from .tuning import CHUNK, ENTRIES, padded, vmem_bytes


def supports(operands: Operands, attributes: Mapping[str, Any], target: Target) -> str | None:
    logits = operands[0]
    rows, size = logits.shape
    if logits.dtype.name not in ("float32", "bfloat16"):
        return f"logits are {logits.dtype}, not float32 or bfloat16"
    if rows < 1 or size < 1:
        return "there are no logits"
    return too_large(size, vmem_bytes(size, logits.dtype.itemsize), target)


def lower(
    logits: Array,
    flags: Array,
    allowed_mask: Array,
    bias_ids: Array,
    bias_values: Array,
    seen_ids: Array,
    seen_counts: Array,
    repetition_penalty: Array,
    frequency_penalty: Array,
    presence_penalty: Array,
) -> Array:
    """Operands and result as in `reference.process_logits`."""
    rows, size = logits.shape
    block, width = min(rows, SUBLANES), padded(size)
    lists = [_whole(x, -1 if x.dtype == jnp.int32 else 0.0) for x in (bias_ids, bias_values, seen_ids)]
    counts = _whole(seen_counts, 0)
    inverse = unordered(divided(jnp.ones_like(repetition_penalty), repetition_penalty))
    used = [_used(ids, flag, block) for ids, flag in ((bias_ids, flags[1]), (seen_ids, flags[2]))]
    scalars = [flags[:1], *used]
    penalties = jnp.stack([repetition_penalty, inverse, frequency_penalty, presence_penalty])
    smem, hbm = pl.BlockSpec(memory_space=pltpu.SMEM), pl.BlockSpec(memory_space=pl.ANY)
    call = pl.pallas_call(
        partial(_kernel, rows=rows),
        grid=(pl.cdiv(rows, block),),
        in_specs=[
            smem,
            smem,
            pl.BlockSpec((block, width), lambda i: (i, 0)),
            pl.BlockSpec((block, width // 32), lambda i: (i, 0)),
            *[hbm] * 4,
        ],
        out_specs=pl.BlockSpec((block, width), lambda i: (i, 0)),
        out_shape=jax.ShapeDtypeStruct((rows, size), jnp.float32),
        scratch_shapes=[
            pltpu.SMEM((SUBLANES, ENTRIES), jnp.int32),
            pltpu.SMEM((SUBLANES, ENTRIES), jnp.int32),
            pltpu.SemaphoreType.DMA((2,)),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=vmem_bytes(size, logits.dtype.itemsize)
        ),
        cost_estimate=pl.CostEstimate(
            flops=4 * rows * size,
            bytes_accessed=logits.nbytes + 4 * rows * size + allowed_mask.nbytes,
            transcendentals=0,
        ),
        name="fxhlo_process_logits",
    )
    ids, values, seen = lists
    return call(
        jnp.concatenate(scalars), penalties.reshape(-1), logits, allowed_mask, ids, bits_of(values), seen, counts
    )


def _whole(entries: Array, fill: float) -> Array:
    """Pads to whole tiles of rows and whole parts of entries, as the kernel's DMA copies need."""
    rows, width = entries.shape
    return jnp.pad(entries, ((0, -rows % SUBLANES), (0, -width % ENTRIES)), constant_values=fill)


def _used(ids: Array, flag: Array, block: int) -> Array:
    """int32 [rows, padded to blocks]: number of entries up to the last used one of each row; 0 if the flag is 0."""

    def count() -> Array:
        place = lax.broadcasted_iota(jnp.int32, ids.shape, 1)
        return jnp.max(jnp.where(ids >= 0, place + 1, 0), axis=1)

    rows = ids.shape[0]
    found = lax.cond(flag != 0, count, lambda: jnp.zeros(rows, jnp.int32))
    return jnp.pad(found, (0, -rows % block))


def _kernel(
    scalars: Any,
    penalties: Any,
    logits: Any,
    mask: Any,
    bias_ids: Any,
    bias_values: Any,
    seen_ids: Any,
    seen_counts: Any,
    out: Any,
    ids: Any,
    values: Any,
    arrived: Any,
    *,
    rows: int,
) -> None:
    """scalars: whether there is a mask, then each row's number of biases, then of seen tokens. penalties: repetition, its
    reciprocal, frequency and presence, `rows` of each."""
    block = out.shape[0]
    first = pl.program_id(0) * block
    whole = pl.num_programs(0) * block
    zero = jnp.minimum(scalars[0], 0)  # 0, but the compiler cannot know that flags are 0 or 1

    _dense(logits, mask, out, masked=scalars[0])

    def bias(x: Array, row: Array, value: Array) -> Array:
        return x + float_of(jnp.full_like(x, value, jnp.int32))

    def penalize(x: Array, row: Array, count: Array) -> Array:
        repetition, inverse, frequency, presence = (
            penalties[jnp.minimum(row, rows - 1) + part * rows] for part in range(4)
        )
        counts = jnp.full_like(x, count, jnp.int32)
        x = _separate(x * jnp.where(x > 0, inverse, repetition), zero)
        x = x - _separate(frequency * counts.astype(jnp.float32), zero)
        return x - jnp.where(counts > 0, presence, 0.0)

    buffers = (ids, values, arrived)
    _sparse(out, bias, (bias_ids, bias_values), buffers, scalars, 1, first)
    _sparse(out, penalize, (seen_ids, seen_counts), buffers, scalars, 1 + whole, first)


def _separate(product: Array, zero: Array) -> Array:
    """Returns the product unchanged, in a way that keeps compilers from fusing it with a subtraction (FMA)."""
    return float_of(bits_of(product) ^ zero)


def _dense(logits: Any, mask: Any, out: Any, masked: Array) -> None:
    """Writes the logits as float32, or -infinity for masked tokens."""
    block, width = out.shape

    def chunks(body: Callable[[Array], None]) -> None:
        def step(index: Array, _: None) -> None:
            body(pl.multiple_of(index * CHUNK, CHUNK))

        lax.fori_loop(0, width // CHUNK, step, None)

    def allowed(start: Array) -> None:
        rows = max(block, 2)  # for one row JAX emits a gather that Mosaic does not support
        words = jnp.broadcast_to(mask[:, pl.ds(pl.multiple_of(start // 32, LANES), LANES)], (rows, LANES))
        lane = lax.broadcasted_iota(jnp.int32, (rows, LANES), 1)
        for part in range(32):
            word = jnp.take_along_axis(words, 4 * part + (lane >> 5), axis=1, mode="promise_in_bounds")
            place = pl.ds(start + part * LANES, LANES)
            x = logits[:, place].astype(jnp.float32)
            bit = ((word >> (lane & 31)) & 1)[:block]
            out[:, place] = jnp.where(bit != 0, x, -jnp.inf)

    def plain(start: Array) -> None:
        out[:, pl.ds(start, CHUNK)] = logits[:, pl.ds(start, CHUNK)].astype(jnp.float32)

    pl.when(masked != 0)(lambda: chunks(allowed))
    pl.when(masked == 0)(lambda: chunks(plain))


def _sparse(
    out: Any,
    change: Callable[[Array, Array, Array], Array],
    entries: tuple[Any, Any],
    buffers: tuple[Any, Any, Any],
    scalars: Any,
    offset: int | Array,
    first: Array,
) -> None:
    """out[row, id] = change(out[row, id], row, value) for each used entry (id, value) of the block's rows."""
    block = out.shape[0]
    ids, values, arrived = buffers
    counts = [scalars[offset + first + row] for row in range(block)]
    most = counts[0]
    for count in counts[1:]:
        most = jnp.maximum(most, count)
    lane = lax.broadcasted_iota(jnp.int32, (1, LANES), 1)

    def part(index: Array, _: None) -> None:
        start = index * ENTRIES
        place = (pl.ds(pl.multiple_of(first, SUBLANES), SUBLANES), pl.ds(pl.multiple_of(start, ENTRIES), ENTRIES))
        copies = [
            pltpu.make_async_copy(source.at[place], into, arrived.at[at])
            for at, (source, into) in enumerate(zip(entries, (ids, values), strict=True))
        ]
        for copy in copies:
            copy.start()
        for copy in copies:
            copy.wait()
        for row in range(block):

            def entry(at: Array, _: None, row: int = row) -> None:
                token, value = ids[row, at], values[row, at]

                @pl.when(token >= 0)
                def _change() -> None:
                    lanes = pl.ds(pl.multiple_of((token >> 7) << 7, LANES), LANES)
                    x = out[row : row + 1, lanes]
                    out[row : row + 1, lanes] = jnp.where(lane == (token & 127), change(x, first + row, value), x)

            lax.fori_loop(0, jnp.clip(counts[row] - start, 0, ENTRIES), entry, None)

    lax.fori_loop(0, (most + ENTRIES - 1) // ENTRIES, part, None)
