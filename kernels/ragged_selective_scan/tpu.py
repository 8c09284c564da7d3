"""`fxhlo.ragged_selective_scan` on TPU: rows one after the other in a Pallas kernel whose state stays in VMEM, its channels along lanes.

XLA's associative scan of a tile writes the states of all of its rows to memory, some twelve times. A step of single rows is XLA's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ...runtime.core.targets import LANES, SUBLANES
from ..paged_attention.tpu_pairs import Pairs
from ..spec import Operands
from . import xla
from .xla_requests import Rows, Step

WIDTH = 32
"""Rows of a tile, whose steps are written out one by one."""
CHANNELS = (512, 384, 256, 128)
"""Channels of a block, the first that divides them."""


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    _, channels, keys = operands.named["state"].shape
    if channels % LANES or keys % SUBLANES or keys > LANES:
        return f"a state of {channels} by {keys}; the kernel takes multiples of {LANES} by multiples of {SUBLANES} up to {LANES}"
    return None


def lower(
    x: Array, dt: Array, a: Array, b: Array, c: Array, d: Array, dt_bias: Array | None = None, *, state: Array, state_slots: Array,
    seq_lens: Array, query_start_loc: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """Operands and results as in reference.py."""
    given = {"state": state, "state_slots": state_slots, "seq_lens": seq_lens, "query_start_loc": query_start_loc}
    return xla.lower(x, dt, a, b, c, d, dt_bias, **given, in_tiles=partial(along_tiles, a.astype(jnp.float32)))


def along_tiles(rate: Array, step: Step, chosen: Array, state: Array, rows: Rows) -> tuple[Array, Array]:
    """`along_requests`' in_tiles. rate [D, N]; state float32 [slots, D, N]; rows: steps and values [T, D], keys and queries [T, N]."""
    steps, values, keys, queries = rows
    (tokens, channels), size = steps.shape, keys.shape[1]
    block = next(one for one in CHANNELS if channels % one == 0)
    tiles = -(-tokens // WIDTH)
    pairs = Pairs.of(step.starts, step.ends, chosen, tokens, WIDTH, 1)
    live = pairs.end > pairs.begin
    first = (pairs.tile * WIDTH + pairs.begin == step.starts[pairs.request]) | ~live
    slots = jnp.where(live, step.slots[pairs.request], 0)

    def padded(one: Array) -> Array:
        return jnp.pad(one, ((0, tiles * WIDTH - tokens), (0, 0)))

    def columns(one: Array) -> Array:
        return jnp.swapaxes(padded(one).reshape(tiles, WIDTH, size), 1, 2)

    def of_state(lane: Any, pair: Any, slots: Any, *_: Any) -> tuple[Any, int, Any]:
        return slots[pair], 0, lane

    def of_row(lane: Any, pair: Any, slots: Any, tile: Any, *_: Any) -> tuple[Any, Any]:
        return tile[pair], lane

    def of_column(lane: Any, pair: Any, slots: Any, tile: Any, *_: Any) -> tuple[Any, int, int]:
        return tile[pair], 0, 0

    place, row = pl.BlockSpec((1, size, block), of_state), pl.BlockSpec((WIDTH, block), of_row)
    column = pl.BlockSpec((1, size, WIDTH), of_column)
    turned = jnp.swapaxes(state, 1, 2)
    output, updated = pl.pallas_call(
        _kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=5,
            grid=(channels // block, pairs.total),
            in_specs=[place, pl.BlockSpec((size, block), lambda lane, *_: (0, lane)), row, row, column, column],
            out_specs=[row, place],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((tiles * WIDTH, channels), jnp.float32),
            jax.ShapeDtypeStruct(turned.shape, jnp.float32),
        ],
        input_output_aliases={5: 1},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        name="selective_scan",
    )(
        slots, pairs.tile, pairs.begin, pairs.end, first.astype(jnp.int32), turned, rate.T, padded(steps), padded(values), columns(keys),
        columns(queries),
    )  # fmt: skip
    return output[:tokens], jnp.swapaxes(updated, 1, 2)


def _kernel(
    slots: Any, tile: Any, begin: Any, end: Any, first: Any, state: Any, rate: Any, steps: Any, values: Any, keys: Any, queries: Any,
    output: Any, updated: Any,
) -> None:  # fmt: skip
    pair = pl.program_id(1)

    @pl.when(first[pair] == 1)
    def _() -> None:
        updated[...] = state[...]

    held, decays = updated[0], rate[...]
    for at in range(WIDTH):
        mine = (begin[pair] <= at) & (at < end[pair])
        step = jnp.where(mine, steps[at : at + 1, :], 0.0)
        value = jnp.where(mine, values[at : at + 1, :], 0.0)
        held = held * jnp.exp(step * decays) + keys[0, :, at : at + 1] * value
        made = jnp.sum(held * queries[0, :, at : at + 1], axis=0, keepdims=True)
        output[at : at + 1, :] = jnp.where(mine, made, output[at : at + 1, :])
    updated[0] = held
