"""`fxhlo.grouped_matmul` in Pallas for CUDA, which Triton compiles: a program a tile of one group's rows and a block of columns.

Weights are read in torch's layout, those of a group once for each tile of its rows; programs of one group follow each other, so that others find them in the
second cache. How many rows a group has is known at run time: there are programs for as many tiles as there can be, and those without rows end at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from ...runtime.core.plugins import without_triton
from ..spec import Operands

DTYPES = ("bfloat16", "float16")


@dataclass(frozen=True)
class Tiles:
    """rows, columns: of a program's result. inner: numbers of a row and of a weight that one step multiplies. Steps are pipelined in `stages`,
    at most 80 KiB of shared memory."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int


FEW, MANY = Tiles(16, 64, 128, 4, 4), Tiles(64, 128, 64, 4, 3)
"""Where groups have few rows the weights' bytes are what takes time; where they have many, the products."""


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    values, weights = operands[:2]
    if values.dtype.name not in DTYPES or weights.dtype != values.dtype:
        return f"operands are {values.dtype} and {weights.dtype}, not both {' or both '.join(DTYPES)}"
    if min(*values.shape, *weights.shape) < 1:
        return "an operand is empty"
    return without_triton()


def lower(values: Array, weights: Array, sizes: Array) -> Array:
    """Operands and result as in `reference.grouped_matmul`."""
    row = lax.broadcasted_iota(jnp.int32, (values.shape[0], 1), 0)
    return jnp.where(row < jnp.sum(sizes), product(values, weights, sizes), 0.0).astype(values.dtype)


def product(values: Array, weights: Array, sizes: Array) -> Array:
    """As `lower`, in float32; rows past the last group are undefined."""
    rows, (groups, outputs, _) = values.shape[0], _sizes(weights)
    tiles = MANY if rows >= groups * MANY.rows // 2 else FEW
    count = rows // tiles.rows + groups
    call = pl.pallas_call(
        partial(_kernel, tiles=tiles),
        grid=(count, pl.cdiv(outputs, tiles.columns)),
        out_shape=jax.ShapeDtypeStruct((rows, outputs), jnp.float32),
        compiler_params=plgpu.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
        name="fxhlo_grouped_matmul",
    )
    return call(tiles_of(sizes, count, tiles.rows), values, weights)


def tiles_of(sizes: Array, count: int, rows: int) -> Array:
    """int32 [count, 3]: of each tile the group, the first row, and how many rows there are, 0 for none."""
    each = (sizes + rows - 1) // rows
    last, number, ends = jnp.cumsum(each), jnp.arange(count), jnp.cumsum(sizes)
    group = jnp.minimum((number[:, None] >= last[None, :]).sum(axis=1), sizes.shape[0] - 1)
    first = ends[group] - sizes[group] + (number - last[group] + each[group]) * rows
    there = jnp.where(number < last[-1], jnp.clip(ends[group] - first, 0, rows), 0)
    return jnp.stack([group, first, there], axis=1).astype(jnp.int32)


def _sizes(weights: Array) -> tuple[int, int, int]:
    groups, outputs, inputs = weights.shape
    return groups, outputs, inputs


def _kernel(which: Any, values: Any, weights: Any, result: Any, *, tiles: Tiles) -> None:
    number, (rows, inputs), outputs = pl.program_id(0), values.shape, result.shape[1]
    group, first, count = (which[number, place] for place in range(3))
    row = first + lax.iota(jnp.int32, tiles.rows)
    column = pl.program_id(1) * tiles.columns + lax.iota(jnp.int32, tiles.columns)
    mine, there = (row < first + count) & (row >= 0) & (row < rows), column < outputs
    whole = inputs % tiles.inner == 0

    def step(index: Array, sums: Array) -> Array:
        at = index * tiles.inner + lax.iota(jnp.int32, tiles.inner)
        inside = jnp.ones((1, tiles.inner), jnp.bool_) if whole else (at < inputs)[None, :]
        left = plgpu.load(values.at[row[:, None], at[None, :]], mask=mine[:, None] & inside, other=0)
        right = plgpu.load(weights.at[group, column[:, None], at[None, :]], mask=there[:, None] & inside, other=0)
        return sums + lax.dot_general(left, right, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)

    steps = jnp.where(count > 0, np.int32(pl.cdiv(inputs, tiles.inner)), 0)
    sums = lax.fori_loop(0, steps, step, jnp.zeros((tiles.rows, tiles.columns), jnp.float32))
    plgpu.store(result.at[row[:, None], column[None, :]], sums, mask=mine[:, None] & there[None, :])
