"""Comparisons, logical and bitwise ops, shifts, and where."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...passes.mlir import stablehlo
from .. import build
from ..build import compare, convert, logical_and, logical_not, logical_or, select
from ..emit.context import Context
from ..promote import Operand, common_dtype, shaped
from ..registry import Rule, rule
from ..types import Value


def _comparison(direction: str) -> Rule:
    """Rule of a comparison (see build.compare): compares in the operands' common dtype, returns bool."""

    def rule_(ctx: Context, self: Value, other: Operand) -> Value:
        dtype = common_dtype(self, other)
        return compare(direction, shaped(self, ctx.shape, dtype), shaped(other, ctx.shape, dtype))

    return rule_


for _direction in ("eq", "ne", "lt", "le", "gt", "ge"):
    rule(f"aten.{_direction}.Tensor", f"aten.{_direction}.Scalar")(_comparison(_direction))

LOGICAL: dict[str, Callable[[Value, Value], Value]] = {
    "and": logical_and,
    "or": logical_or,
    "xor": lambda left, right: build.binary(stablehlo.xor, left, right),
}


def _logical(function: Callable[[Value, Value], Value]) -> Rule:
    """Rule of a logical op: operands of any dtype are converted to bool; returns bool."""

    def rule_(ctx: Context, self: Value, other: Value) -> Value:
        return function(shaped(self, ctx.shape, torch.bool), shaped(other, ctx.shape, torch.bool))

    return rule_


def _bitwise(function: Callable[[Value, Value], Value]) -> Rule:
    """Rule of a bitwise op, computed in the result's dtype: bool or an integer."""

    def rule_(ctx: Context, self: Operand, other: Operand) -> Value:
        return function(shaped(self, ctx.shape, ctx.dtype), shaped(other, ctx.shape, ctx.dtype))

    return rule_


for _name, _function in LOGICAL.items():
    rule(f"aten.logical_{_name}.default")(_logical(_function))
    rule(*[f"aten.bitwise_{_name}.{overload}" for overload in ("Tensor", "Scalar", "Scalar_Tensor")])(
        _bitwise(_function)
    )
    rule(*[f"aten.__{_name}__.{overload}" for overload in ("Tensor", "Scalar")])(_bitwise(_function))


@rule("aten.logical_not.default")
def logical_not_(ctx: Context, self: Value) -> Value:
    return logical_not(convert(self, torch.bool))


@rule("aten.bitwise_not.default")
def bitwise_not(ctx: Context, self: Value) -> Value:
    return logical_not(self)


_SHIFT_OVERLOADS = ("Tensor", "Tensor_Scalar", "Scalar_Tensor")


@rule(
    *[f"aten.bitwise_left_shift.{overload}" for overload in _SHIFT_OVERLOADS],
    "aten.__lshift__.Tensor",
    "aten.__lshift__.Scalar",
)
def left_shift(ctx: Context, self: Operand, other: Operand) -> Value:
    """Negative amounts, and amounts of at least the width, give 0: StableHLO reads amounts as unsigned."""
    return build.binary(stablehlo.shift_left, shaped(self, ctx.shape, ctx.dtype), shaped(other, ctx.shape, ctx.dtype))


@rule(
    *[f"aten.bitwise_right_shift.{overload}" for overload in _SHIFT_OVERLOADS],
    "aten.__rshift__.Tensor",
    "aten.__rshift__.Scalar",
)
def right_shift(ctx: Context, self: Operand, other: Operand) -> Value:
    """Arithmetic shift, logical for unsigned dtypes; negative amounts, and amounts of at least the width, leave only the sign."""
    shift = stablehlo.shift_right_arithmetic if ctx.dtype.is_signed else stablehlo.shift_right_logical
    return build.binary(shift, shaped(self, ctx.shape, ctx.dtype), shaped(other, ctx.shape, ctx.dtype))


@rule("aten.where.self")
def where(ctx: Context, condition: Value, self: Operand, other: Operand) -> Value:
    return select(
        shaped(condition, ctx.shape, torch.bool),
        shaped(self, ctx.shape, ctx.dtype),
        shaped(other, ctx.shape, ctx.dtype),
    )
