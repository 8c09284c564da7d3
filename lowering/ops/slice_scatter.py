"""Scatters into parts whose places are known when a module is lowered: slices, one index, a diagonal."""

from __future__ import annotations

import torch

from .. import build
from ..emit.context import Context
from ..registry import rule
from ..types import Value
from .shape import axis, bounds


@rule("aten.slice_scatter.default")
def slice_scatter(
    ctx: Context, self: Value, src: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    dim = axis(dim, self.rank)
    first, _ = bounds(self.shape[dim], start, end)
    src = build.convert(src, self.dtype)
    if 0 in src.shape:
        return self
    if step == 1:
        return build.dynamic_update_slice(self, src, [first if d == dim else 0 for d in range(self.rank)])
    covered = (src.shape[dim] - 1) * step + 1
    low, high, between = (
        [amount if d == dim else 0 for d in range(self.rank)]
        for amount in (first, self.shape[dim] - first - covered, step - 1)
    )
    here = build.pad(build.full(src.shape, torch.bool, True), build.full((), torch.bool, False), low, high, between)
    return build.select(here, build.pad(src, build.full((), self.dtype, 0), low, high, between), self)


@rule("aten.select_scatter.default")
def select_scatter(ctx: Context, self: Value, src: Value, dim: int, index: int) -> Value:
    dim = axis(dim, self.rank)
    index = index % self.shape[dim]
    update = build.reshape(build.convert(src, self.dtype), (*self.shape[:dim], 1, *self.shape[dim + 1 :]))
    return build.dynamic_update_slice(self, update, [index if d == dim else 0 for d in range(self.rank)])


@rule("aten.diagonal_scatter.default")
def diagonal_scatter(ctx: Context, self: Value, src: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    """Broadcasts each diagonal element over its row and selects it at the diagonal's column."""
    if 0 in src.shape:
        return self
    dim1, dim2 = axis(dim1, self.rank), axis(dim2, self.rank)
    order = [*(dim for dim in range(self.rank) if dim not in (dim1, dim2)), dim1, dim2]
    moved = build.transpose(self, order)
    rows, columns = (
        build.iota(moved.shape, torch.int32, self.rank - 2),
        build.iota(moved.shape, torch.int32, self.rank - 1),
    )
    here = build.compare("eq", build.subtract(columns, rows), build.full(moved.shape, torch.int32, offset))
    low = max(-offset, 0)
    zeros = [0] * (src.rank - 1)
    column = build.pad(
        src, build.full((), src.dtype, 0), [*zeros, low], [*zeros, moved.shape[-2] - low - src.shape[-1]]
    )
    wide = build.broadcast_in_dim(build.convert(column, self.dtype), moved.shape, range(self.rank - 1))
    back = [order.index(dim) for dim in range(self.rank)]
    return build.transpose(build.select(here, wide, moved), back)
