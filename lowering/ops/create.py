"""Creation ops: constants, sequences and patterns. `empty` returns zeros, so that results are deterministic."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .. import build
from ..emit.context import Context
from ..registry import rule
from ..types import Value


def _filled(ctx: Context, scalar: object) -> Value:
    """Constant of the result's shape and dtype."""
    return build.full(ctx.shape, ctx.dtype, scalar)


@rule("aten.full.default")
def full(
    ctx: Context,
    size: Sequence[int],
    fill_value: object,
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
) -> Value:
    return _filled(ctx, fill_value)


@rule("aten.full_like.default")
def full_like(
    ctx: Context,
    self: Value,
    fill_value: object,
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
    memory_format: object = None,
) -> Value:
    return _filled(ctx, fill_value)


@rule("aten.new_full.default")
def new_full(
    ctx: Context,
    self: Value,
    size: Sequence[int],
    fill_value: object,
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
) -> Value:
    return _filled(ctx, fill_value)


@rule("aten.zeros.default")
def zeros(
    ctx: Context,
    size: Sequence[int],
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
) -> Value:
    return _filled(ctx, 0)


@rule("aten.ones.default")
def ones(
    ctx: Context,
    size: Sequence[int],
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
) -> Value:
    return _filled(ctx, 1)


@rule("aten.empty.memory_format")
def empty(
    ctx: Context,
    size: Sequence[int],
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
    memory_format: object = None,
) -> Value:
    return _filled(ctx, 0)


@rule("aten.empty_strided.default")
def empty_strided(
    ctx: Context,
    size: Sequence[int],
    stride: Sequence[int],
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
) -> Value:
    return _filled(ctx, 0)


@rule("aten.empty_permuted.default")
def empty_permuted(
    ctx: Context,
    size: Sequence[int],
    physical_layout: Sequence[int],
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
) -> Value:
    return _filled(ctx, 0)


@rule("aten.zeros_like.default", "aten.empty_like.default")
def zeros_like(
    ctx: Context,
    self: Value,
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
    memory_format: object = None,
) -> Value:
    return _filled(ctx, 0)


@rule("aten.ones_like.default")
def ones_like(
    ctx: Context,
    self: Value,
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
    memory_format: object = None,
) -> Value:
    return _filled(ctx, 1)


@rule("aten.new_zeros.default", "aten.new_empty.default")
def new_zeros(
    ctx: Context,
    self: Value,
    size: Sequence[int],
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
) -> Value:
    return _filled(ctx, 0)


@rule("aten.new_ones.default")
def new_ones(
    ctx: Context,
    self: Value,
    size: Sequence[int],
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
) -> Value:
    return _filled(ctx, 1)


@rule("aten.new_empty_strided.default")
def new_empty_strided(
    ctx: Context,
    self: Value,
    size: Sequence[int],
    stride: Sequence[int],
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
) -> Value:
    return _filled(ctx, 0)


@rule("aten.scalar_tensor.default")
def scalar_tensor(
    ctx: Context,
    s: object,
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
) -> Value:
    return _filled(ctx, s)


@rule("aten.fill.Scalar")
def fill(ctx: Context, self: Value, value: object) -> Value:
    return _filled(ctx, value)


@rule("aten.fill.Tensor")
def fill_tensor(ctx: Context, self: Value, value: Value) -> Value:
    return build.broadcast(build.convert(build.reshape(value, ()), ctx.dtype), ctx.shape)


# -- sequences -----------------------------------------------------------------------------------------------------


def _counted(ctx: Context, start: float, step: float) -> Value:
    """start + i * step [n]. Non-integral float steps become a constant, computed here in float64 as torch does."""
    if not ctx.dtype.is_floating_point or (
        float(start).is_integer() and float(step).is_integer() and ctx.dtype in (torch.float32, torch.float64)
    ):
        counts = build.iota(ctx.shape, ctx.dtype, 0)
        counts = counts if step == 1 else build.multiply(counts, build.full_like(counts, step))
        return counts if start == 0 else build.add(counts, build.full_like(counts, start))
    steps = torch.arange(ctx.shape[0], dtype=torch.float64)
    return build.array((steps * float(step) + float(start)).numpy(), ctx.dtype)


@rule("aten.arange.start_step")
def arange(
    ctx: Context,
    start: float,
    end: float,
    step: float = 1,
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
) -> Value:
    return _counted(ctx, start, step)


@rule("aten.arange.start")
def arange_start(
    ctx: Context,
    start: float,
    end: float,
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
) -> Value:
    return _counted(ctx, start, 1)


@rule("aten.arange.default")
def arange_end(
    ctx: Context,
    end: float,
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
) -> Value:
    return _counted(ctx, 0, 1)


@rule("prims.iota.default")
def iota(
    ctx: Context, length: int, *, start: int, step: int, dtype: object, device: object, requires_grad: bool
) -> Value:
    return _counted(ctx, start, step)


def _computed(ctx: Context, tensor: torch.Tensor) -> Value:
    """Constant from `tensor`, which torch computed during lowering, so that it equals eager torch bit by bit."""
    return build.array(tensor.to(torch.float64 if ctx.dtype.is_floating_point else tensor.dtype).numpy(), ctx.dtype)


@rule("aten.linspace.default")
def linspace(
    ctx: Context,
    start: float,
    end: float,
    steps: int,
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
) -> Value:
    return _computed(ctx, torch.linspace(start, end, steps, dtype=ctx.dtype))


@rule("aten.logspace.default")
def logspace(
    ctx: Context,
    start: float,
    end: float,
    steps: int,
    base: float = 10.0,
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
) -> Value:
    return _computed(ctx, torch.logspace(start, end, steps, base, dtype=ctx.dtype))


# -- patterns ------------------------------------------------------------------------------------------------------


def _eye(ctx: Context) -> Value:
    """[n, m] with ones on the main diagonal."""
    if 0 in ctx.shape:
        return _filled(ctx, 0)
    rows, columns = build.iota(ctx.shape, torch.int32, 0), build.iota(ctx.shape, torch.int32, 1)
    return build.convert(build.compare("eq", rows, columns), ctx.dtype)


@rule("aten.eye.default")
def eye(
    ctx: Context,
    n: int,
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
) -> Value:
    return _eye(ctx)


@rule("aten.eye.m")
def eye_m(
    ctx: Context,
    n: int,
    m: int,
    *,
    dtype: object = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
) -> Value:
    return _eye(ctx)


@rule("aten.tril_indices.default")
def tril_indices(
    ctx: Context,
    row: int,
    col: int,
    offset: int = 0,
    *,
    dtype: object = 4,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
) -> Value:
    return _computed(ctx, torch.tril_indices(row, col, offset))


@rule("aten.triu_indices.default")
def triu_indices(
    ctx: Context,
    row: int,
    col: int,
    offset: int = 0,
    *,
    dtype: object = 4,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
) -> Value:
    return _computed(ctx, torch.triu_indices(row, col, offset))
