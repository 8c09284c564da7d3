"""`fxhlo.grouped_matmul` in Pallas for TPU: reads each tile of the weights of a group that has rows once, in torch's layout.

XLA's ragged dot wants [group, inputs, outputs], and transposes all weights in each call (docs/kernels_considered.md).
The grid goes over visits, pairs of a tile of rows and a group with rows in it; how many there are is known at run time, and each has
its tile's and its group's number in SMEM. Visits of a group, and those of a tile, follow each other, so that
no tile of a weight and no tile of the result is copied twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ...runtime.core.targets import Target
from ..spec import Operands
from .tuning import height_of, most_visits, tiles_for


def supports(operands: Operands, attributes: Mapping[str, Any], target: Target) -> str | None:
    values, weights = operands[:2]
    if values.dtype.name != "bfloat16" or weights.dtype != values.dtype:
        return f"operands are {values.dtype} and {weights.dtype}, not bfloat16"
    if min(*values.shape, *weights.shape) < 1:
        return "an operand is empty"
    tiles = tiles_for(values.shape[0], *_sizes(weights.shape), target)
    return tiles if isinstance(tiles, str) else None


def lower(values: Array, weights: Array, sizes: Array, *, target: Target) -> Array:
    """Operands and result as in `reference.grouped_matmul`."""
    visits = visits_of(sizes, values.shape[0], target)
    result = product(values, weights, visits, target)
    row = lax.broadcasted_iota(jnp.int32, (values.shape[0], 1), 0)
    return jnp.where(row < visits.ends[-1], result, 0.0).astype(values.dtype)


@dataclass(frozen=True)
class Visits:
    """ends [groups + 1]: rows in front of each group, and in all. group, tile: of each visit. count: how many there are; at least one,
    which may have no rows."""

    ends: Array
    group: Array
    tile: Array
    count: Array


def visits_of(sizes: Array, rows: int, target: Target) -> Visits:
    """The visits for `rows` rows, the first of which are in groups of `sizes`."""
    height, groups = height_of(rows, target), sizes.shape[0]
    ends = jnp.cumsum(sizes)
    first = (ends - sizes) // height
    tiles = jnp.where(sizes > 0, (ends - 1) // height - first + 1, 0)
    last = jnp.cumsum(tiles)
    visit = lax.broadcasted_iota(jnp.int32, (most_visits(rows, groups, target), 1), 0)
    group = jnp.minimum(jnp.sum(last[None, :] <= visit, 1, dtype=jnp.int32), groups - 1)
    here = group[:, None] == lax.broadcasted_iota(jnp.int32, (1, groups), 1)
    tile = jnp.sum(jnp.where(here, first - last + tiles, 0), 1) + visit[:, 0]
    count = jnp.maximum(last[-1], 1)
    tile = jnp.where(visit[:, 0] < count, tile, 0)
    return Visits(jnp.concatenate([jnp.zeros(1, jnp.int32), ends]), group, tile, count)


def product(values: Array, weights: Array, visits: Visits, target: Target) -> Array:
    """As `lower`, in float32; rows past the last group are undefined. Raises ValueError for operands that `supports` refuses."""
    rows, (groups, inputs, outputs) = values.shape[0], _sizes(weights.shape)
    tiles = tiles_for(rows, groups, inputs, outputs, target)
    if isinstance(tiles, str):
        raise ValueError(tiles)
    return pl.pallas_call(
        partial(_kernel, rows=tiles.rows),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(pl.cdiv(outputs, tiles.columns), visits.count),
            in_specs=[
                pl.BlockSpec((tiles.rows, inputs), lambda n, v, ends, group, tile: (tile[v], 0)),
                pl.BlockSpec((None, tiles.columns, inputs), lambda n, v, ends, group, tile: (group[v], n, 0)),
            ],
            out_specs=pl.BlockSpec((tiles.rows, tiles.columns), lambda n, v, ends, group, tile: (tile[v], n)),
        ),
        out_shape=jax.ShapeDtypeStruct((rows, outputs), jnp.float32),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=tiles.vmem
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * rows * inputs * outputs,
            bytes_accessed=values.nbytes + weights.nbytes * min(rows, groups) // groups + 4 * rows * outputs,
            transcendentals=0,
        ),
        name="fxhlo_grouped_matmul",
    )(visits.ends, visits.group, visits.tile, values, weights)


def _sizes(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Groups, inputs and outputs of the weights."""
    groups, outputs, inputs = shape
    return groups, inputs, outputs


def _kernel(ends: Any, group: Any, tile: Any, values: Any, weight: Any, out: Any, *, rows: int) -> None:
    visit = pl.program_id(1)
    first = (visit == 0) | (tile[visit] != tile[jnp.maximum(visit - 1, 0)])
    one = lax.dot_general(values[...], weight[...], (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    row = tile[visit] * rows + lax.broadcasted_iota(jnp.int32, one.shape, 0)
    mine = (row >= ends[group[visit]]) & (row < ends[group[visit] + 1])

    @pl.when(first)
    def _() -> None:
        out[...] = jnp.where(mine, one, 0.0)

    @pl.when(~first)
    def _() -> None:
        out[...] = jnp.where(mine, one, out[...])
