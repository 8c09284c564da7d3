"""Complex numbers: construction, real and imaginary parts, conjugation, angle."""

from __future__ import annotations

import torch

from ...passes.mlir import stablehlo
from .. import build
from ..emit.context import Context
from ..promote import shaped
from ..registry import rule
from ..types import Value


def part_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the real and imaginary parts of a complex dtype."""
    return torch.float64 if dtype is torch.complex128 else torch.float32


def joined(real: Value, imag: Value, dtype: torch.dtype) -> Value:
    """real + i imag in the complex `dtype`; both parts have the dtype `part_dtype(dtype)`."""
    return build.value(stablehlo.complex(real.ir, imag.ir), real.shape, dtype)


def parts(self: Value) -> tuple[Value, Value]:
    """(real part, imaginary part) of a complex value, in `part_dtype(self.dtype)`."""
    dtype = part_dtype(self.dtype)
    return (
        build.value(stablehlo.real(self.ir), self.shape, dtype),
        build.value(stablehlo.imag(self.ir), self.shape, dtype),
    )


@rule("aten.complex.default")
def complex_(ctx: Context, real: Value, imag: Value) -> Value:
    part = part_dtype(ctx.dtype)
    return joined(shaped(real, ctx.shape, part), shaped(imag, ctx.shape, part), ctx.dtype)


@rule("aten.polar.default")
def polar(ctx: Context, abs: Value, angle: Value) -> Value:
    part = part_dtype(ctx.dtype)
    length, angle = shaped(abs, ctx.shape, part), shaped(angle, ctx.shape, part)
    cosine, sine = build.unary(stablehlo.cosine, angle), build.unary(stablehlo.sine, angle)
    return joined(build.multiply(length, cosine), build.multiply(length, sine), ctx.dtype)


@rule("aten.real.default")
def real(ctx: Context, self: Value) -> Value:
    return parts(self)[0] if self.dtype.is_complex else self


@rule("aten.imag.default")
def imag(ctx: Context, self: Value) -> Value:
    return parts(self)[1]


@rule("aten.view_as_real.default", "aten.view_as_real_copy.default")
def view_as_real(ctx: Context, self: Value) -> Value:
    both = [build.reshape(part, (*self.shape, 1)) for part in parts(self)]
    return build.concatenate(both, self.rank)


@rule("aten.view_as_complex.default", "aten.view_as_complex_copy.default")
def view_as_complex(ctx: Context, self: Value) -> Value:
    first, second = (
        build.reshape(build.slice_dim(self, self.rank - 1, index, index + 1), ctx.shape) for index in (0, 1)
    )
    part = part_dtype(ctx.dtype)
    return joined(build.convert(first, part), build.convert(second, part), ctx.dtype)


@rule("aten._conj.default", "aten._conj_copy.default", "aten._conj_physical.default", "aten.conj_physical.default")
@rule("aten.conj.default")
def conj(ctx: Context, self: Value) -> Value:
    return build.conjugate(self)


@rule("aten.resolve_conj.default", "aten.resolve_neg.default")
def resolve(ctx: Context, self: Value) -> Value:
    """Identity: values have no lazy conjugate or negative bit, `_conj` and `_neg_view` compute theirs."""
    return self


@rule("aten._neg_view.default", "aten._neg_view_copy.default")
def neg_view(ctx: Context, self: Value) -> Value:
    return build.unary(stablehlo.negate, self)


@rule("aten.angle.default")
def angle(ctx: Context, self: Value) -> Value:
    """atan2(imag, real); for real dtypes pi if negative, NaN if NaN, else 0."""
    if self.dtype.is_complex:
        first, second = parts(self)
        return build.binary(stablehlo.atan2, second, first)
    zero, pi = build.full(ctx.shape, ctx.dtype, 0), build.full(ctx.shape, ctx.dtype, torch.pi)
    result = build.select(build.compare("lt", self, build.full_like(self, 0)), pi, zero)
    if self.dtype.is_floating_point:
        result = build.select(build.compare("ne", self, self), build.convert(self, ctx.dtype), result)
    return result
