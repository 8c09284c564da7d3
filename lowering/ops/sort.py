"""Sorting, order statistics and binary search. NaN is greater than every number, -0.0 equals 0.0, and sorts are stable in both directions."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch

from ...passes.mlir import stablehlo
from .. import build
from ..emit.context import Context
from ..promote import Operand, common_dtype, shaped
from ..registry import rule
from ..types import Value
from .index import gathered
from .shape import axis


def before(descending: bool) -> Callable[..., Value]:
    """Comparator for build.sort that compares the first operand; the other operands are only permuted."""

    def comes_first(left: Value, right: Value, *_: Value) -> Value:
        if not left.dtype.is_floating_point:
            return build.compare("gt" if descending else "lt", left, right)
        number = right if descending else left
        beyond = build.logical_not(build.compare("le" if descending else "ge", left, right))  # True if either is NaN
        return build.logical_and(beyond, build.compare("eq", number, number))

    return comes_first


def sorted_with_indices(self: Value, dim: int, descending: bool) -> tuple[Value, Value]:
    """(sorted values, int64 indices of them in `self`) along `dim`; a stable sort."""
    if not self.rank:
        return self, build.full((), torch.int64, 0)
    dim = axis(dim, self.rank)
    if 0 in self.shape:
        return self, build.full(self.shape, torch.int64, 0)
    values, indices = build.sort([self, build.iota(self.shape, torch.int32, dim)], dim, before(descending))
    return values, build.convert(indices, torch.int64)


@rule("aten.sort.default")
def sort(ctx: Context, self: Value, dim: int = -1, descending: bool = False) -> tuple[Value, Value]:
    return sorted_with_indices(self, dim, descending)


@rule("aten.sort.stable")
def sort_stable(
    ctx: Context, self: Value, *, stable: bool | None, dim: int = -1, descending: bool = False
) -> tuple[Value, Value]:
    return sorted_with_indices(self, dim, descending)


@rule("aten.topk.default")
def topk(
    ctx: Context, self: Value, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Value, Value]:
    """The first k of a stable sort: of equal elements, those with the smallest indices.

    Of the largest, XLA knows a sort of float32 by total order as its own top-k, which sorts nothing: here with one zero and one NaN.
    """
    if largest and self.dtype in (torch.float32, torch.bfloat16, torch.float16) and self.rank and 0 not in self.shape:
        dim = axis(dim, self.rank)
        values, places = build.sort([_one_zero_one_nan(self), build.iota(self.shape, torch.int32, dim)], dim, _greater)
        values, places = (build.slice_dim(part, dim, 0, k) for part in (values, places))
        return build.convert(values, self.dtype), build.convert(places, torch.int64)
    values, indices = sorted_with_indices(self, dim, largest)
    if not self.rank:
        return build.reshape(values, ctx.shape), build.reshape(indices, ctx.shape)
    dim = axis(dim, self.rank)
    return build.slice_dim(values, dim, 0, k), build.slice_dim(indices, dim, 0, k)


def _one_zero_one_nan(self: Value) -> Value:
    """In float32, with -0.0 as 0.0 and every NaN as the greatest: where values compare equal, so do they in total order."""
    wide = build.convert(self, torch.float32)
    number = build.select(build.compare("eq", wide, build.full_like(wide, 0)), build.full_like(wide, 0), wide)
    return build.select(build.compare("eq", wide, wide), number, build.full_like(wide, float("nan")))


def _greater(left: Value, right: Value, *_: Value) -> Value:
    return build.compare_in_total_order("gt", left, right)


# -- order statistics ----------------------------------------------------------------------------------------------


def _picked(ctx: Context, values: Value, indices: Value, dim: int, at: Value) -> tuple[Value, Value]:
    """Gathers values and indices at position `at` (size 1 along `dim`), in the result's shape."""
    return tuple(build.reshape(gathered(part, dim, at), ctx.shape) for part in (values, indices))  # type: ignore[return-value]


@rule("aten.kthvalue.default")
def kthvalue(ctx: Context, self: Value, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Value, Value]:
    values, indices = sorted_with_indices(self, dim, False)
    if not self.rank or 0 in ctx.shape:
        return build.reshape(values, ctx.shape), build.reshape(indices, ctx.shape)
    dim = axis(dim, self.rank)
    return tuple(build.reshape(build.slice_dim(part, dim, k - 1, k), ctx.shape) for part in (values, indices))  # type: ignore[return-value]


def _median(ctx: Context, self: Value, dim: int, ignore_nan: bool) -> tuple[Value, Value]:
    """(lower median, its int64 index). NaN sort last: median returns the first NaN, nanmedian the median of the other elements."""
    self = self if self.rank else build.reshape(self, (1,))
    dim = axis(dim, self.rank)
    size, shape = self.shape[dim], (*self.shape[:dim], 1, *self.shape[dim + 1 :])
    if 0 in self.shape:
        nothing = float("nan") if ctx.dtype.is_floating_point else torch.iinfo(ctx.dtype).min
        return build.full(ctx.shape, ctx.dtype, nothing), build.full(ctx.shape, torch.int64, 0)
    values, indices = sorted_with_indices(self, dim, False)
    at = build.full(shape, torch.int32, (size - 1) // 2)
    if self.dtype.is_floating_point:
        present = build.convert(build.compare("eq", values, values), torch.int32)
        numbers = build.reshape(build.reduce_with(build.add, present, 0, [dim]), shape)
        if ignore_nan:
            below = build.subtract(numbers, build.full(shape, torch.int32, 1))
            at = build.binary(
                stablehlo.shift_right_arithmetic,
                build.maximum(below, build.full(shape, torch.int32, 0)),
                build.full(shape, torch.int32, 1),
            )
        else:
            at = build.select(build.compare("lt", numbers, build.full(shape, torch.int32, size)), numbers, at)
    return _picked(ctx, values, indices, dim, at)


@rule("aten.median.dim")
def median_dim(ctx: Context, self: Value, dim: int, keepdim: bool = False) -> tuple[Value, Value]:
    return _median(ctx, self, dim, False)


@rule("aten.nanmedian.dim")
def nanmedian_dim(ctx: Context, self: Value, dim: int, keepdim: bool = False) -> tuple[Value, Value]:
    return _median(ctx, self, dim, True)


@rule("aten.median.default")
def median(ctx: Context, self: Value) -> Value:
    return _median(ctx, build.reshape(self, (prod(self.shape),)), 0, False)[0]


@rule("aten.nanmedian.default")
def nanmedian(ctx: Context, self: Value) -> Value:
    return _median(ctx, build.reshape(self, (prod(self.shape),)), 0, True)[0]


@rule("aten.mode.default")
def mode(ctx: Context, self: Value, dim: int = -1, keepdim: bool = False) -> tuple[Value, Value]:
    """(smallest of the most frequent elements, its last index)."""
    if not self.rank or 0 in self.shape:
        return build.reshape(self, ctx.shape), build.full(ctx.shape, torch.int64, 0)
    dim = axis(dim, self.rank)
    values, indices = sorted_with_indices(self, dim, False)
    wide = (*values.shape[: dim + 1], values.shape[dim], *values.shape[dim + 1 :])
    rest = [d for d in range(len(wide)) if d != dim + 1]
    other = [d for d in range(len(wide)) if d != dim]
    same = build.compare("eq", build.broadcast_in_dim(values, wide, rest), build.broadcast_in_dim(values, wide, other))
    counts = build.reduce_with(build.add, build.convert(same, torch.int32), 0, [dim + 1])
    shape = (*self.shape[:dim], 1, *self.shape[dim + 1 :])
    most = build.reduce_with(build.maximum, counts, 0, [dim])
    is_most = build.compare(
        "eq", counts, build.broadcast_in_dim(most, counts.shape, [d for d in range(self.rank) if d != dim])
    )
    places = build.iota(counts.shape, torch.int32, dim)
    first = build.reduce_with(
        build.minimum, build.select(is_most, places, build.full_like(places, self.shape[dim])), self.shape[dim], [dim]
    )
    last = build.subtract(build.add(first, build.maximum(most, build.full_like(most, 1))), build.full_like(most, 1))
    return _picked(ctx, values, indices, dim, build.reshape(last, shape))


# -- binary search ------------------------------------------------------------------------------------------------


def _places(ctx: Context, boundaries: Value, values: Operand, right: bool) -> Value:
    """Number of boundaries less than each value, or with `right` less than or equal to it, in the result's dtype.

    Follows ATen's binary search step by step, so that NaN and unsorted boundaries give eager torch's results.
    """
    size = boundaries.shape[-1]
    if not size or 0 in ctx.shape:
        return build.full(ctx.shape, ctx.dtype, 0)
    dtype = common_dtype(boundaries, values)
    boundaries, values = build.convert(boundaries, dtype), shaped(values, ctx.shape, dtype)
    start, end = build.full(values.shape, torch.int32, 0), build.full(values.shape, torch.int32, size)
    one, last = build.full_like(start, 1), build.full_like(start, size - 1)
    for _ in range(size.bit_length()):
        middle = build.binary(stablehlo.shift_right_arithmetic, build.add(start, end), one)
        at = build.minimum(middle, last)
        edge = build.take(boundaries, at, 0) if boundaries.rank == 1 else gathered(boundaries, boundaries.rank - 1, at)
        beyond = build.compare("gt" if right else "ge", edge, values)
        start, end = (
            build.select(build.logical_or(beyond, build.compare("ge", start, end)), start, build.add(middle, one)),
            build.select(beyond, middle, end),
        )
    return build.convert(start, ctx.dtype)


def _searchsorted(
    ctx: Context, sequence: Value, values: Operand, right: bool, side: str | None, sorter: Value | None
) -> Value:
    """`_places` in a sequence permuted by `sorter`; `side`, if given, overrides `right`."""
    if sorter is not None:
        sequence = gathered(sequence, sequence.rank - 1, sorter)
    return _places(ctx, sequence, values, right if side is None else side == "right")


@rule("aten.searchsorted.Tensor")
def searchsorted(
    ctx: Context,
    sorted_sequence: Value,
    self: Value,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Value | None = None,
) -> Value:
    return _searchsorted(ctx, sorted_sequence, self, right, side, sorter)


@rule("aten.searchsorted.Scalar")
def searchsorted_scalar(
    ctx: Context,
    sorted_sequence: Value,
    self: Operand,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Value | None = None,
) -> Value:
    return _searchsorted(ctx, sorted_sequence, self, right, side, sorter)


@rule("aten.bucketize.Tensor")
def bucketize(ctx: Context, self: Value, boundaries: Value, *, out_int32: bool = False, right: bool = False) -> Value:
    return _places(ctx, boundaries, self, right)


@rule("aten.bucketize.Scalar")
def bucketize_scalar(
    ctx: Context, self: Operand, boundaries: Value, *, out_int32: bool = False, right: bool = False
) -> Value:
    return _places(ctx, boundaries, self, right)
