"""Fourier transforms, by JAX. ATen's normalization codes for n transformed elements: 0 none, 1 divides by sqrt(n), 2 by n."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt
from typing import Any

from .. import build
from ..emit.context import Context
from ..jax.emit import emit_jax
from ..registry import rule
from ..types import Value


def _transform(x: Any, *, kind: str, dims: tuple[int, ...], size: int, factor: float) -> Any:
    """Unnormalized transform over `dims`, times `factor`; kind is c2r (whose last size is `size`), r2c, forward or backward."""
    import jax.numpy as jnp

    *others, last = dims
    if kind == "c2r":
        for dim in others:
            x = jnp.fft.ifft(x, axis=dim, norm="forward")
        x = jnp.fft.irfft(x, n=size, axis=last, norm="forward")
    elif kind == "r2c":
        x = jnp.fft.rfft(x, axis=last)
        for dim in others:
            x = jnp.fft.fft(x, axis=dim)
    else:
        for dim in dims:
            x = jnp.fft.fft(x, axis=dim) if kind == "forward" else jnp.fft.ifft(x, axis=dim, norm="forward")
    return x if factor == 1 else x * factor


def _emit(ctx: Context, kind: str, operand: Value, dim: Sequence[int], normalization: int, size: int = 0) -> Value:
    """Emits `_transform` with ATen's normalization; without `dim` the operand is only converted."""
    dims = tuple(one % operand.rank for one in dim)
    if not dims or 0 in ctx.shape:
        return build.convert(operand, ctx.dtype) if operand.shape == ctx.shape else build.full(ctx.shape, ctx.dtype, 0)
    shape = ctx.shape if kind == "c2r" else operand.shape
    count = prod(shape[one] for one in dims)
    factor = {0: 1.0, 1: 1 / sqrt(count), 2: 1 / count}[normalization]
    return emit_jax(ctx, _transform, operand, kind=kind, dims=dims, size=size, factor=factor)[0]


@rule("aten._fft_r2c.default")
def fft_r2c(ctx: Context, self: Value, dim: Sequence[int], normalization: int, onesided: bool) -> Value:
    if onesided:
        return _emit(ctx, "r2c", self, dim, normalization)
    return _emit(ctx, "forward", build.convert(self, ctx.dtype), dim, normalization)


@rule("aten._fft_c2r.default")
def fft_c2r(ctx: Context, self: Value, dim: Sequence[int], normalization: int, last_dim_size: int) -> Value:
    return _emit(ctx, "c2r", self, dim, normalization, last_dim_size)


@rule("aten._fft_c2c.default")
def fft_c2c(ctx: Context, self: Value, dim: Sequence[int], normalization: int, forward: bool) -> Value:
    return _emit(ctx, "forward" if forward else "backward", self, dim, normalization)
