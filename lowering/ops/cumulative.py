"""Cumulative ops, as Hillis-Steele scans: log2(n) elementwise steps over the whole tensor, which every backend vectorizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ...passes.mlir import stablehlo
from .. import build
from ..build import (
    add,
    compare,
    convert,
    full,
    full_like,
    logical_and,
    logical_or,
    maximum,
    minimum,
    multiply,
    select,
    subtract,
    unary,
)
from ..emit.context import Context
from ..promote import wide
from ..registry import rule
from ..types import Value
from .complex_numbers import parts


def scan(
    operands: Sequence[Value], identities: Sequence[object], dim: int, combine: Callable[..., Sequence[Value]]
) -> list[Value]:
    """Inclusive scan of operands of one shape along `dim`; `combine(*earlier, *later)` is associative, `identities` its neutral scalars."""
    values = list(operands)
    size = values[0].shape[dim] if values[0].rank else 1
    step = 1
    while step < size:
        low = [step if d == dim else 0 for d in range(values[0].rank)]
        high = [-step if d == dim else 0 for d in range(values[0].rank)]
        earlier = [
            build.pad(value, full((), value.dtype, identity), low, high)
            for value, identity in zip(values, identities, strict=True)
        ]
        values = list(combine(*earlier, *values))
        step *= 2
    return values


def _along(ctx: Context, self: Value, dim: int, identity: object, combine: Callable[[Value, Value], Value]) -> Value:
    """Scan of one operand, converted to the result's dtype first and accumulated in float32 for half precision."""
    operand = convert(convert(self, ctx.dtype), wide(ctx.dtype))
    (result,) = scan([operand], [identity], dim % max(self.rank, 1), lambda earlier, later: [combine(earlier, later)])
    return convert(result, ctx.dtype)


@rule("aten.cumsum.default")
def cumsum(ctx: Context, self: Value, dim: int, *, dtype: torch.dtype | None = None) -> Value:
    return _along(ctx, self, dim, 0, add)


@rule("aten.cumprod.default")
def cumprod(ctx: Context, self: Value, dim: int, *, dtype: torch.dtype | None = None) -> Value:
    return _along(ctx, self, dim, 1, multiply)


@rule("aten.logcumsumexp.default")
def logcumsumexp(ctx: Context, self: Value, dim: int) -> Value:
    return _along(ctx, self, dim, float("-inf"), log_add_exp)


def log_add_exp(left: Value, right: Value) -> Value:
    """log(exp(left) + exp(right)), exact for infinities; complex numbers are ordered by their real parts."""
    if left.dtype.is_complex:
        return _complex_log_add_exp(left, right)
    high, low = maximum(left, right), minimum(left, right)
    sum_ = add(high, unary(stablehlo.log_plus_one, unary(stablehlo.exponential, subtract(low, high))))
    infinite = compare("eq", unary(stablehlo.abs, high), full_like(high, float("inf")))
    return select(infinite, high, sum_)


def _complex_log_add_exp(left: Value, right: Value) -> Value:
    size = parts(left)[0], parts(right)[0]
    larger = logical_or(compare("ge", *size), compare("ne", size[0], size[0]))  # NaN propagates
    high, low = select(larger, left, right), select(larger, right, left)
    sum_ = add(high, unary(stablehlo.log_plus_one, unary(stablehlo.exponential, subtract(low, high))))
    nothing = compare("eq", parts(high)[0], full(high.shape, size[0].dtype, float("-inf")))
    return select(nothing, high, sum_)


@rule("aten.cummax.default")
def cummax(ctx: Context, self: Value, dim: int) -> tuple[Value, Value]:
    return _running(self, dim, "ge")


@rule("aten.cummin.default")
def cummin(ctx: Context, self: Value, dim: int) -> tuple[Value, Value]:
    return _running(self, dim, "le")


def _running(self: Value, dim: int, direction: str) -> tuple[Value, Value]:
    """Running maximum (`ge`) or minimum (`le`) and its last position, int64. NaN counts as the extreme; position -1 marks padding."""
    dim %= max(self.rank, 1)
    if self.rank == 0:
        return self, full((), torch.int64, 0)

    def combine(value0: Value, index0: Value, value1: Value, index1: Value) -> list[Value]:
        later = compare(direction, value1, value0)
        if self.dtype.is_floating_point:
            nan0, nan1 = compare("ne", value0, value0), compare("ne", value1, value1)
            later = logical_or(logical_and(later, build.logical_not(nan0)), nan1)
        later = logical_or(later, compare("lt", index0, full_like(index0, 0)))
        return [select(later, value1, value0), select(later, index1, index0)]

    positions = build.iota(self.shape, torch.int32, dim)
    values, indices = scan([self, positions], [0, -1], dim, combine)
    return values, convert(indices, torch.int64)
