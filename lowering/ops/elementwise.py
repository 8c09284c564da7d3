"""Elementwise arithmetic and mathematical functions; most are rows of a table."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch

from ...passes.mlir import chlo, stablehlo
from .. import build
from ..build import (
    add,
    compare,
    convert,
    divide,
    full_like,
    logical_and,
    logical_not,
    maximum,
    minimum,
    multiply,
    select,
    subtract,
    unary,
)
from ..emit.context import Context
from ..promote import Operand, computed, exact, shaped, wide
from ..registry import Rule, rule
from ..types import Value

# -- one operand ---------------------------------------------------------------------------------------------------


def trunc(x: Value) -> Value:
    """Rounds a float towards zero."""
    return select(compare("lt", x, full_like(x, 0)), unary(stablehlo.ceil, x), unary(stablehlo.floor, x))


def scaled(op: build.Builder, factor: float) -> Callable[[Value], Value]:
    """A function that applies `op` and multiplies by `factor`."""
    return lambda x: multiply(unary(op, x), full_like(x, factor))


def exp2(x: Value) -> Value:
    return build.binary(stablehlo.power, full_like(x, 2), x)


def digamma(x: Value) -> Value:
    """chlo.digamma, with -inf at 0 and inf at -0 as in ATen, where CHLO returns NaN."""
    zero = full_like(x, 0)
    pole = build.binary(stablehlo.divide, full_like(x, -1), x)
    return select(compare("eq", x, zero), pole, unary(chlo.digamma, x))


def is_nan(x: Value) -> Value:
    return compare("ne", x, x)


FUNCTIONS: dict[str, Callable[[Value], Value]] = {
    "acos": lambda x: unary(chlo.acos, x),
    "acosh": lambda x: unary(chlo.acosh, x),
    "asin": lambda x: unary(chlo.asin, x),
    "asinh": lambda x: unary(chlo.asinh, x),
    "atan": lambda x: unary(chlo.atan, x),
    "atanh": lambda x: unary(chlo.atanh, x),
    "cos": lambda x: unary(stablehlo.cosine, x),
    "cosh": lambda x: unary(chlo.cosh, x),
    "digamma": lambda x: digamma(x),
    "erf": build.erf,
    "erfc": lambda x: unary(chlo.erfc, x),
    "erfinv": lambda x: unary(chlo.erf_inv, x),
    "exp": lambda x: unary(stablehlo.exponential, x),
    "exp2": exp2,
    "expm1": lambda x: unary(stablehlo.exponential_minus_one, x),
    "lgamma": lambda x: unary(chlo.lgamma, x),
    "log": lambda x: unary(stablehlo.log, x),
    "log10": scaled(stablehlo.log, 1 / math.log(10)),
    "log1p": lambda x: unary(stablehlo.log_plus_one, x),
    "log2": scaled(stablehlo.log, 1 / math.log(2)),
    "reciprocal": lambda x: divide(full_like(x, 1), x),
    "rsqrt": lambda x: unary(stablehlo.rsqrt, x),
    "sigmoid": lambda x: unary(stablehlo.logistic, x),
    "sin": lambda x: unary(stablehlo.sine, x),
    "sinh": lambda x: unary(chlo.sinh, x),
    "sqrt": lambda x: unary(stablehlo.sqrt, x),
    "tan": lambda x: unary(stablehlo.tan, x),
    "tanh": lambda x: unary(stablehlo.tanh, x),
}
"""`aten.<name>.default`, float to float: integers are converted first, half precision is computed in float32."""

ROUNDINGS: dict[str, Callable[[Value], Value]] = {
    "ceil": lambda x: unary(stablehlo.ceil, x),
    "floor": lambda x: unary(stablehlo.floor, x),
    "round": lambda x: unary(stablehlo.round_nearest_even, x),
    "trunc": trunc,
}
"""`aten.<name>.default`: rounds floats to integral values; returns integers unchanged."""


def _function(function: Callable[[Value], Value]) -> Rule:
    def rule_(ctx: Context, self: Value) -> Value:
        return computed(function, ctx.shape, ctx.dtype, self)

    return rule_


def _rounding(function: Callable[[Value], Value]) -> Callable[[Context, Value], Value]:
    def rule_(ctx: Context, self: Value) -> Value:
        return function(self) if self.dtype.is_floating_point else self

    return rule_


for _name, _builder in FUNCTIONS.items():
    rule(f"aten.{_name}.default")(_function(_builder))
for _name, _builder in ROUNDINGS.items():
    rule(f"aten.{_name}.default")(_rounding(_builder))


@rule("aten.abs.default")
def abs_(ctx: Context, self: Value) -> Value:
    if self.dtype is torch.bool or not self.dtype.is_signed:
        return self
    return unary(stablehlo.abs, self, ctx.dtype)


@rule("aten.neg.default")
def neg(ctx: Context, self: Value) -> Value:
    return unary(stablehlo.negate, self)


@rule("aten.sign.default")
def sign(ctx: Context, self: Value) -> Value:
    """The sign of NaN is 0, unlike stablehlo.sign's."""
    if self.dtype is torch.bool:
        return self
    zero = full_like(self, 0)
    return subtract(convert(compare("gt", self, zero), self.dtype), convert(compare("lt", self, zero), self.dtype))


@rule("aten.sgn.default")
def sgn(ctx: Context, self: Value) -> Value:
    return unary(stablehlo.sign, self) if self.dtype.is_complex else sign(ctx, self)


@rule("aten.signbit.default")
def signbit(ctx: Context, self: Value) -> Value:
    if not self.dtype.is_floating_point:
        return (
            build.full(ctx.shape, torch.bool, False)
            if not self.dtype.is_signed
            else compare("lt", self, full_like(self, 0))
        )
    bits = build.bitcast(self, {2: torch.int16, 4: torch.int32, 8: torch.int64}[self.dtype.itemsize])
    return compare("lt", bits, full_like(bits, 0))


@rule("aten.frac.default")
def frac(ctx: Context, self: Value) -> Value:
    return subtract(self, trunc(self))


@rule("aten.round.decimals")
def round_decimals(ctx: Context, self: Value, *, decimals: int = 0) -> Value:
    if not self.dtype.is_floating_point or decimals == 0:
        return _rounding(ROUNDINGS["round"])(ctx, self)
    scale = full_like(self, 10.0 ** abs(decimals))
    up, down = (multiply, divide) if decimals > 0 else (divide, multiply)
    return down(unary(stablehlo.round_nearest_even, up(self, scale)), scale)


@rule("aten.isnan.default")
def isnan(ctx: Context, self: Value) -> Value:
    if not (self.dtype.is_floating_point or self.dtype.is_complex):
        return build.full(ctx.shape, torch.bool, False)
    return is_nan(self)


@rule("aten.isinf.default")
def isinf(ctx: Context, self: Value) -> Value:
    if self.dtype.is_complex:
        return build.logical_or(
            *[
                isinf(ctx, Value(part(self.ir), self.shape, ctx_real(self.dtype)))
                for part in (stablehlo.real, stablehlo.imag)
            ]
        )
    if not self.dtype.is_floating_point:
        return build.full(ctx.shape, torch.bool, False)
    return compare("eq", unary(stablehlo.abs, self), full_like(self, math.inf))


@rule("aten.isfinite.default")
def isfinite(ctx: Context, self: Value) -> Value:
    return (
        unary(stablehlo.is_finite, self, torch.bool)
        if self.dtype.is_floating_point
        else build.full(ctx.shape, torch.bool, True)
    )


def ctx_real(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the real and imaginary parts of a complex dtype."""
    return torch.float64 if dtype is torch.complex128 else torch.float32


# -- two operands --------------------------------------------------------------------------------------------------


def arithmetic(function: Callable[[Value, Value], Value], ctx: Context, self: Operand, other: Operand) -> Value:
    """Computes in the result's dtype, or wider if a Python scalar is not exact in it: torch does not round scalars first."""
    if exact(self, ctx.dtype) and exact(other, ctx.dtype):
        return function(shaped(self, ctx.shape, ctx.dtype), shaped(other, ctx.shape, ctx.dtype))
    return computed(function, ctx.shape, ctx.dtype, self, other)


def _times(value: Operand, alpha: int | float, dtype: torch.dtype) -> Operand:
    """alpha * value; tensors are multiplied in `dtype`."""
    if alpha == 1:
        return value
    if not isinstance(value, Value):
        return value * alpha
    value = convert(value, dtype)
    return multiply(value, full_like(value, alpha))


@rule("aten.add.Tensor", "aten.add.Scalar")
def add_(ctx: Context, self: Operand, other: Operand, alpha: int | float = 1) -> Value:
    return arithmetic(add, ctx, self, _times(other, alpha, wide(ctx.dtype) if alpha != 1 else ctx.dtype))


@rule("aten.sub.Tensor", "aten.sub.Scalar")
def sub(ctx: Context, self: Operand, other: Operand, alpha: int | float = 1) -> Value:
    return arithmetic(subtract, ctx, self, _times(other, alpha, wide(ctx.dtype) if alpha != 1 else ctx.dtype))


@rule("aten.rsub.Tensor", "aten.rsub.Scalar")
def rsub(ctx: Context, self: Operand, other: Operand, alpha: int | float = 1) -> Value:
    return sub(ctx, other, self, alpha)


@rule("aten.mul.Tensor", "aten.mul.Scalar")
def mul(ctx: Context, self: Operand, other: Operand) -> Value:
    return arithmetic(multiply, ctx, self, other)


@rule("aten.div.Tensor", "aten.div.Scalar")
def div(ctx: Context, self: Operand, other: Operand) -> Value:
    return arithmetic(divide, ctx, self, other)


@rule("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def div_mode(ctx: Context, self: Operand, other: Operand, *, rounding_mode: str | None) -> Value:
    if rounding_mode is None:
        return div(ctx, self, other)
    if rounding_mode == "floor":
        return floor_divide(ctx, self, other)
    if not ctx.dtype.is_floating_point:
        return div(ctx, self, other)
    return computed(lambda left, right: trunc(divide(left, right)), ctx.shape, ctx.dtype, self, other)


@rule("aten.floor_divide.default", "aten.floor_divide.Scalar")
def floor_divide(ctx: Context, self: Operand, other: Operand) -> Value:
    return computed(_floor_divide, ctx.shape, ctx.dtype, self, other)


def _floor_divide(left: Value, right: Value) -> Value:
    """Follows c10::div_floor_integer and c10::div_floor_floating step by step."""
    zero = full_like(left, 0)
    if not left.dtype.is_signed:
        return divide(left, right)
    remainder_ = build.binary(stablehlo.remainder, left, right)
    opposite = logical_and(
        compare("ne", remainder_, zero), compare("ne", compare("lt", remainder_, zero), compare("lt", right, zero))
    )
    if not left.dtype.is_floating_point:
        quotient = divide(left, right)
        return select(opposite, subtract(quotient, full_like(left, 1)), quotient)
    quotient = divide(subtract(left, remainder_), right)
    quotient = select(opposite, subtract(quotient, full_like(left, 1)), quotient)
    floored = unary(stablehlo.floor, quotient)
    floored = select(
        compare("gt", subtract(quotient, floored), full_like(left, 0.5)), add(floored, full_like(left, 1)), floored
    )
    plain = divide(left, right)
    signed_zero = multiply(zero, unary(stablehlo.sign, plain))
    floored = select(compare("eq", quotient, zero), signed_zero, floored)
    return select(compare("eq", right, zero), plain, floored)


@rule("aten.remainder.Tensor", "aten.remainder.Scalar", "aten.remainder.Scalar_Tensor")
def remainder(ctx: Context, self: Operand, other: Operand) -> Value:
    """The remainder has the divisor's sign, as Python's %."""
    return computed(_remainder, ctx.shape, ctx.dtype, *_rounded(ctx, self, other))


def _rounded(ctx: Context, *operands: Operand) -> list[Operand]:
    """Operands with Python scalars rounded to the result's dtype, as torch rounds them in these ops."""
    return [operand if isinstance(operand, Value) else build.full((), ctx.dtype, operand) for operand in operands]


def _remainder(left: Value, right: Value) -> Value:
    rest = build.binary(stablehlo.remainder, left, right)
    if not left.dtype.is_signed:
        return rest
    zero = full_like(left, 0)
    opposite = logical_and(
        compare("ne", rest, zero), compare("ne", compare("lt", rest, zero), compare("lt", right, zero))
    )
    return select(opposite, add(rest, right), rest)


@rule("aten.fmod.Tensor", "aten.fmod.Scalar")
def fmod(ctx: Context, self: Operand, other: Operand) -> Value:
    """The remainder has the dividend's sign, as C's fmod."""
    return computed(
        lambda left, right: build.binary(stablehlo.remainder, left, right),
        ctx.shape,
        ctx.dtype,
        *_rounded(ctx, self, other),
    )


@rule("aten.maximum.default")
def maximum_(ctx: Context, self: Operand, other: Operand) -> Value:
    return maximum(shaped(self, ctx.shape, ctx.dtype), shaped(other, ctx.shape, ctx.dtype))


@rule("aten.minimum.default")
def minimum_(ctx: Context, self: Operand, other: Operand) -> Value:
    return minimum(shaped(self, ctx.shape, ctx.dtype), shaped(other, ctx.shape, ctx.dtype))


@rule("aten.fmax.default")
def fmax(ctx: Context, self: Value, other: Value) -> Value:
    return _ignoring_nan(maximum, shaped(self, ctx.shape, ctx.dtype), shaped(other, ctx.shape, ctx.dtype))


@rule("aten.fmin.default")
def fmin(ctx: Context, self: Value, other: Value) -> Value:
    return _ignoring_nan(minimum, shaped(self, ctx.shape, ctx.dtype), shaped(other, ctx.shape, ctx.dtype))


def _ignoring_nan(op: Callable[[Value, Value], Value], left: Value, right: Value) -> Value:
    """op(left, right), or the other operand if one is NaN."""
    if not left.dtype.is_floating_point:
        return op(left, right)
    return select(is_nan(left), right, select(is_nan(right), left, op(left, right)))


@rule("aten.atan2.default")
def atan2(ctx: Context, self: Operand, other: Operand) -> Value:
    return computed(lambda left, right: build.binary(stablehlo.atan2, left, right), ctx.shape, ctx.dtype, self, other)


@rule("aten.pow.Tensor_Tensor", "aten.pow.Tensor_Scalar", "aten.pow.Scalar")
def pow_(ctx: Context, self: Operand, exponent: Operand) -> Value:
    if not isinstance(exponent, Value) and isinstance(self, Value) and not ctx.dtype.is_complex:
        short = _power(shaped(self, ctx.shape, wide(ctx.dtype)), exponent)
        if short is not None:
            return convert(short, ctx.dtype)
    if ctx.dtype is torch.bool:  # only False ** True is False
        return build.logical_or(
            shaped(self, ctx.shape, torch.bool), logical_not(shaped(exponent, ctx.shape, torch.bool))
        )
    integer = not (ctx.dtype.is_floating_point or ctx.dtype.is_complex)
    large = integer and (isinstance(exponent, Value) or exponent >= EXPONENTS)  # type: ignore[operator]
    power = _integer_power if large else functools.partial(build.binary, stablehlo.power)
    return computed(power, ctx.shape, ctx.dtype, self, exponent)


EXPONENTS = 64
"""XLA's integer power uses only the six lowest bits of an exponent; larger exponents use `_integer_power`."""


def _integer_power(base: Value, exponent: Value) -> Value:
    """Integer power by repeated squaring, wrapping around as torch's does; 1, -1 or 0 for negative exponents."""
    zero, one = full_like(base, 0), full_like(base, 1)
    negative = compare("lt", exponent, zero)

    def unfinished(result: Value, base: Value, left: Value) -> Value:
        return build.reduce_with(build.logical_or, compare("ne", left, zero), 0, range(left.rank))

    def step(result: Value, base: Value, left: Value) -> list[Value]:
        odd = compare("ne", build.binary(stablehlo.and_, left, one), zero)
        halved = build.binary(stablehlo.shift_right_logical, left, one)
        return [select(odd, multiply(result, base), result), multiply(base, base), halved]

    raised = build.while_([one, base, select(negative, zero, exponent)], unfinished, step)[0]
    return select(negative, build.binary(stablehlo.power, base, exponent), raised)


def _power(base: Value, exponent: int | float | bool | complex) -> Value | None:
    """Powers that torch computes without pow; None for other exponents."""
    if exponent == 1:
        return base
    if exponent == 2:
        return multiply(base, base)
    if exponent == 3:
        return multiply(multiply(base, base), base)
    if not base.dtype.is_floating_point:
        return None
    if exponent == 0.5:
        return unary(stablehlo.sqrt, base)
    if exponent == -0.5:
        return divide(full_like(base, 1), unary(stablehlo.sqrt, base))
    if exponent == -1:
        return divide(full_like(base, 1), base)
    if exponent == -2:
        return divide(full_like(base, 1), multiply(base, base))
    return None


@rule("aten.copysign.Tensor", "aten.copysign.Scalar")
def copysign(ctx: Context, self: Operand, other: Operand) -> Value:
    magnitude = unary(stablehlo.abs, shaped(self, ctx.shape, ctx.dtype))
    negative = signbit(ctx, shaped(other, ctx.shape, ctx.dtype))
    return select(negative, unary(stablehlo.negate, magnitude), magnitude)


@rule("aten.nextafter.default")
def nextafter(ctx: Context, self: Value, other: Value) -> Value:
    return build.binary(chlo.next_after, shaped(self, ctx.shape, ctx.dtype), shaped(other, ctx.shape, ctx.dtype))


# -- clamping ------------------------------------------------------------------------------------------------------


@rule("aten.clamp.default", "aten.clamp.Tensor")
def clamp(ctx: Context, self: Value, min: Operand | None = None, max: Operand | None = None) -> Value:
    """min(max(self, min), max): if the bounds cross, the upper one wins; NaN propagates."""
    result = shaped(self, ctx.shape, ctx.dtype)
    if min is not None:
        result = maximum(result, shaped(min, ctx.shape, ctx.dtype))
    if max is not None:
        result = minimum(result, shaped(max, ctx.shape, ctx.dtype))
    return result


@rule("aten.clamp_min.default", "aten.clamp_min.Tensor")
def clamp_min(ctx: Context, self: Value, min: Operand) -> Value:
    return clamp(ctx, self, min)


@rule("aten.clamp_max.default", "aten.clamp_max.Tensor")
def clamp_max(ctx: Context, self: Value, max: Operand) -> Value:
    return clamp(ctx, self, None, max)
