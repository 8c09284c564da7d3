"""Reductions: sums, products, maxima and minima with positions, variance, logsumexp.

Half precision accumulates in float32 and is rounded once, as in torch. A maximum or minimum with a NaN is NaN; of
equal extremes the first position is returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch

from ...passes.mlir import stablehlo
from .. import build
from ..build import (
    add,
    compare,
    convert,
    divide,
    full,
    full_like,
    logical_and,
    logical_or,
    maximum,
    minimum,
    multiply,
    reshape,
    select,
    subtract,
    unary,
)
from ..emit.context import Context
from ..promote import wide
from ..registry import rule
from ..types import Value
from .complex_numbers import parts


def dims_of(operand: Value, dim: int | Sequence[int] | None, *, empty_is_all: bool = True) -> list[int]:
    """Sorted non-negative dimensions; None, and with `empty_is_all` an empty list, means all."""
    if dim is None or (empty_is_all and not isinstance(dim, int) and len(dim) == 0):
        return list(range(operand.rank))
    if operand.rank == 0:
        return []
    return sorted(entry % operand.rank for entry in ([dim] if isinstance(dim, int) else dim))


def kept(operand: Value, dims: Sequence[int]) -> tuple[int, ...]:
    """The operand's shape with the reduced dimensions as 1."""
    return tuple(1 if dim in set(dims) else size for dim, size in enumerate(operand.shape))


def along(reduced: Value, operand: Value, dims: Sequence[int]) -> Value:
    """A reduction's result broadcast back to the operand's shape."""
    return build.broadcast_in_dim(reduced, operand.shape, [dim for dim in range(operand.rank) if dim not in set(dims)])


def total(operand: Value, dims: Sequence[int]) -> Value:
    """Sum over `dims`, which are dropped, in the operand's dtype."""
    return build.reduce_with(add, operand, 0, dims)


def lowest(dtype: torch.dtype) -> float | int:
    """Neutral element of maximum in `dtype`."""
    if dtype.is_floating_point:
        return float("-inf")
    return 0 if dtype is torch.bool else torch.iinfo(dtype).min


def highest(dtype: torch.dtype) -> float | int:
    """Neutral element of minimum in `dtype`."""
    if dtype.is_floating_point:
        return float("inf")
    return 1 if dtype is torch.bool else torch.iinfo(dtype).max


def largest(operand: Value, dims: Sequence[int]) -> Value:
    """Maximum over `dims`, which are dropped; any for bool."""
    return build.reduce_with(_or_max, operand, lowest(operand.dtype), dims)


def smallest(operand: Value, dims: Sequence[int]) -> Value:
    """Minimum over `dims`, which are dropped; all for bool."""
    return build.reduce_with(_and_min, operand, highest(operand.dtype), dims)


def _or_max(left: Value, right: Value) -> Value:
    return logical_or(left, right) if left.dtype is torch.bool else maximum(left, right)


def _and_min(left: Value, right: Value) -> Value:
    return logical_and(left, right) if left.dtype is torch.bool else minimum(left, right)


# -- sums and products ---------------------------------------------------------------------------------------------


@rule("aten.sum.default")
def sum_(ctx: Context, self: Value, *, dtype: torch.dtype | None = None) -> Value:
    return sum_dims(ctx, self, None, dtype=dtype)


@rule("aten.sum.dim_IntList")
def sum_dims(
    ctx: Context, self: Value, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Value:
    operand = (
        convert(self, wide(ctx.dtype))
        if self.dtype is ctx.dtype
        else convert(convert(self, ctx.dtype), wide(ctx.dtype))
    )
    return reshape(convert(total(operand, dims_of(self, dim)), ctx.dtype), ctx.shape)


@rule("aten.mean.default")
def mean(ctx: Context, self: Value, *, dtype: torch.dtype | None = None) -> Value:
    return mean_dims(ctx, self, None, dtype=dtype)


@rule("aten.mean.dim")
def mean_dims(
    ctx: Context, self: Value, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Value:
    dims = dims_of(self, dim)
    result = total(convert(self, wide(ctx.dtype)), dims)
    result = divide(result, full_like(result, prod(self.shape[d] for d in dims)))
    return reshape(convert(result, ctx.dtype), ctx.shape)


@rule("aten.prod.default")
def prod_(ctx: Context, self: Value, *, dtype: torch.dtype | None = None) -> Value:
    return _product(ctx, self, None)


@rule("aten.prod.dim_int")
def prod_dim(ctx: Context, self: Value, dim: int, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Value:
    return _product(ctx, self, dim)


def _product(ctx: Context, self: Value, dim: int | None) -> Value:
    """Product over `dim`, or over all dimensions."""
    operand = convert(convert(self, ctx.dtype), wide(ctx.dtype))
    return reshape(convert(build.reduce_with(multiply, operand, 1, dims_of(self, dim)), ctx.dtype), ctx.shape)


@rule("aten.any.default")
def any_(ctx: Context, self: Value) -> Value:
    return any_dims(ctx, self, None)


@rule("aten.any.dim", "aten.any.dims")
def any_dims(ctx: Context, self: Value, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Value:
    result = build.reduce_with(logical_or, convert(self, torch.bool), 0, dims_of(self, dim, empty_is_all=False))
    return reshape(convert(result, ctx.dtype), ctx.shape)


@rule("aten.all.default")
def all_(ctx: Context, self: Value) -> Value:
    return all_dims(ctx, self, None)


@rule("aten.all.dim", "aten.all.dims")
def all_dims(ctx: Context, self: Value, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Value:
    result = build.reduce_with(logical_and, convert(self, torch.bool), 1, dims_of(self, dim, empty_is_all=False))
    return reshape(convert(result, ctx.dtype), ctx.shape)


# -- extremes ------------------------------------------------------------------------------------------------------


@rule("aten.amax.default")
def amax(ctx: Context, self: Value, dim: Sequence[int] = (), keepdim: bool = False) -> Value:
    return reshape(largest(self, dims_of(self, dim)), ctx.shape)


@rule("aten.amin.default")
def amin(ctx: Context, self: Value, dim: Sequence[int] = (), keepdim: bool = False) -> Value:
    return reshape(smallest(self, dims_of(self, dim)), ctx.shape)


@rule("aten.max.default")
def max_(ctx: Context, self: Value) -> Value:
    return largest(self, range(self.rank))


@rule("aten.min.default")
def min_(ctx: Context, self: Value) -> Value:
    return smallest(self, range(self.rank))


@rule("aten.aminmax.default")
def aminmax(ctx: Context, self: Value, *, dim: int | None = None, keepdim: bool = False) -> tuple[Value, Value]:
    dims = dims_of(self, dim)
    return reshape(smallest(self, dims), ctx.shape), reshape(largest(self, dims), ctx.shape)


def extreme(operand: Value, dim: int, extreme_of: Callable[[Value, Sequence[int]], Value]) -> tuple[Value, Value]:
    """(extreme along `dim`, its first position as int64), without `dim`; `extreme_of` is `largest` or `smallest`, and NaN is the extreme."""
    if operand.rank == 0:
        return operand, full((), torch.int64, 0)
    best = extreme_of(operand, [dim])
    hit = compare("eq", operand, along(best, operand, [dim]))
    if operand.dtype.is_floating_point:
        hit = logical_or(hit, compare("ne", operand, operand))
    size = operand.shape[dim]
    positions = build.iota(operand.shape, torch.int32, dim)
    first = smallest(select(hit, positions, full_like(positions, size)), [dim])
    return best, convert(first, torch.int64)


@rule("aten.max.dim")
def max_dim(ctx: Context, self: Value, dim: int, keepdim: bool = False) -> tuple[Value, Value]:
    best, first = extreme(self, dim % max(self.rank, 1), largest)
    return reshape(best, ctx.shape), reshape(first, ctx.shape)


@rule("aten.min.dim")
def min_dim(ctx: Context, self: Value, dim: int, keepdim: bool = False) -> tuple[Value, Value]:
    best, first = extreme(self, dim % max(self.rank, 1), smallest)
    return reshape(best, ctx.shape), reshape(first, ctx.shape)


@rule("aten.argmax.default")
def argmax(ctx: Context, self: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    return _position(ctx, self, dim, largest)


@rule("aten.argmin.default")
def argmin(ctx: Context, self: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    return _position(ctx, self, dim, smallest)


def _position(ctx: Context, self: Value, dim: int | None, extreme_of: Callable[..., Value]) -> Value:
    """Position of the extreme along `dim`, or in the flattened operand."""
    operand = reshape(self, (prod(self.shape),)) if dim is None else self
    return reshape(extreme(operand, (dim or 0) % max(operand.rank, 1), extreme_of)[1], ctx.shape)


# -- moments -------------------------------------------------------------------------------------------------------


def moments(operand: Value, dims: Sequence[int], correction: float) -> tuple[Value, Value]:
    """(variance, mean) over `dims`, in two passes and in the operand's dtype; a complex operand's variance is real."""
    count = prod(operand.shape[dim] for dim in dims)
    mean_ = total(operand, dims)
    mean_ = divide(mean_, full_like(mean_, count))
    centered = subtract(operand, along(mean_, operand, dims))
    squares = total(multiply(centered, build.conjugate(centered) if operand.dtype.is_complex else centered), dims)
    if operand.dtype.is_complex:
        squares = parts(squares)[0]
    return divide(squares, full_like(squares, max(0, count - correction))), mean_


@rule("aten.var.correction")
def var(
    ctx: Context,
    self: Value,
    dim: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> Value:
    return var_mean(ctx, self, dim, correction=correction, keepdim=keepdim)[0]


@rule("aten.var_mean.correction")
def var_mean(
    ctx: Context,
    self: Value,
    dim: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> tuple[Value, Value]:
    variance, mean_ = moments(
        convert(self, wide(self.dtype)), dims_of(self, dim), 1 if correction is None else correction
    )
    return reshape(convert(variance, ctx.dtype), ctx.shape), reshape(convert(mean_, self.dtype), ctx.shape)


@rule("aten.std.correction")
def std(
    ctx: Context,
    self: Value,
    dim: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> Value:
    variance, _ = moments(convert(self, wide(self.dtype)), dims_of(self, dim), 1 if correction is None else correction)
    return reshape(convert(unary(stablehlo.sqrt, variance), ctx.dtype), ctx.shape)


@rule("aten.logsumexp.default")
def logsumexp(ctx: Context, self: Value, dim: Sequence[int], keepdim: bool = False) -> Value:
    operand = convert(convert(self, ctx.dtype), wide(ctx.dtype))
    dims = dims_of(self, dim)
    best = largest(parts(operand)[0] if operand.dtype.is_complex else operand, dims)
    infinite = compare("eq", unary(stablehlo.abs, best), full_like(best, float("inf")))
    best = convert(select(infinite, full_like(best, 0), best), operand.dtype)
    exponentials = unary(stablehlo.exponential, subtract(operand, along(best, operand, dims)))
    return reshape(convert(add(unary(stablehlo.log, total(exponentials, dims)), best), ctx.dtype), ctx.shape)
