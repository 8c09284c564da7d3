"""Max pooling (with indices) and average pooling, over strided or adaptive windows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce as fold
from math import prod

import numpy as np
import torch

from .. import build
from ..emit.context import Context
from ..registry import rule
from ..types import Value
from .convolution import each
from .index import neutral


class Window:
    """Pooling window over the last dimensions of `self`: sizes, strides, dilation and padding that yield the shape `result`."""

    def __init__(
        self,
        self_: Value,
        result: Sequence[int],
        size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> None:
        self.rank = len(size)
        self.lead = self_.rank - self.rank
        self.input = self_.shape[self.lead :]
        self.result = tuple(result[self.lead :])
        self.size, self.padding, self.dilation = list(size), list(padding), list(dilation)
        self.stride = list(stride) or self.size
        self.reach = [(length - 1) * d + 1 for length, d in zip(self.size, self.dilation, strict=True)]

    def reduce(self, operands: Sequence[Value], initials: Sequence[Value], body: build.Body) -> list[Value]:
        """build.reduce_window over the window's positions; positions past the input are padded with `initials`."""
        ones, zeros = [1] * self.lead, [0] * self.lead
        needed = [(count - 1) * s + r for count, s, r in zip(self.result, self.stride, self.reach, strict=True)]
        high = [need - size - low for need, size, low in zip(needed, self.input, self.padding, strict=True)]
        return build.reduce_window(
            operands, initials, body,
            window=ones + self.size, strides=ones + self.stride, dilation=ones + self.dilation, padding=(zeros + self.padding, zeros + high),
        )  # fmt: skip

    def counts(self, padded: bool) -> np.ndarray:
        """Number of input elements in each window, int64 of the spatial result shape; with `padded`, padding counts too, positions beyond it do not."""
        per_dim = []
        for count, stride, reach, low, size in zip(
            self.result, self.stride, self.reach, self.padding, self.input, strict=True
        ):
            start = np.arange(count) * stride - low
            stop = np.minimum(start + reach, size + low if padded else size)
            per_dim.append(stop - (start if padded else np.maximum(start, 0)))
        return fold(np.multiply.outer, per_dim)


def window(
    ctx: Context,
    self: Value,
    rank: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: object,
    dilation: object = 1,
) -> Window:
    """The window of a pooling op, whose arguments are ints or sequences; no stride means the kernel size."""

    def listed(amounts: object) -> list[int]:
        return each([amounts] if isinstance(amounts, int) else amounts, rank)  # type: ignore[arg-type]

    return Window(
        self, ctx.shape, listed(kernel_size), listed(stride) if stride else [], listed(padding), listed(dilation)
    )


# -- maxima --------------------------------------------------------------------------------------------------------


def _larger(left: Value, left_at: Value, right: Value, right_at: Value) -> tuple[Value, Value]:
    """The larger value and its index: the first of equal values; NaN is the largest, with its last index."""
    keep = build.compare("gt", left, right)
    later = build.compare("gt", left_at, right_at)
    tie = build.logical_and(build.compare("eq", left, right), build.logical_not(later))
    keep = build.logical_or(keep, tie)
    if left.dtype.is_floating_point:
        left_nan, right_nan = build.compare("ne", left, left), build.compare("ne", right, right)
        keep = build.logical_or(
            keep, build.logical_and(left_nan, build.logical_or(build.logical_not(right_nan), later))
        )
    return build.select(keep, left, right), build.select(keep, left_at, right_at)


def _places(self: Value, rank: int) -> Value:
    """int32 index of each element within the flattened last `rank` dimensions."""
    plane = self.shape[self.rank - rank :]
    return build.broadcast(build.reshape(build.iota((prod(plane),), torch.int32, 0), plane), self.shape)


def _max_with_places(ctx: Context, self: Value, over: Window) -> tuple[Value, Value]:
    """(maxima, their int64 indices into the flattened spatial dimensions)."""
    if 0 in ctx.shape:
        return build.full(ctx.shape, ctx.dtype, 0), build.full(ctx.shape, torch.int64, 0)
    lowest = build.full((), self.dtype, neutral(self.dtype, "amax"))
    (values,) = over.reduce([self], [lowest], build.maximum)
    _, places = over.reduce([self, _places(self, over.rank)], [lowest, build.full((), torch.int32, 2**31 - 1)], _larger)
    return values, build.convert(places, torch.int64)


@rule("aten.max_pool2d_with_indices.default")
def max_pool2d_with_indices(
    ctx: Context,
    self: Value,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> tuple[Value, Value]:
    """Values and indices are separate reduce_window ops, so that unused indices are removed as dead code."""
    return _max_with_places(ctx, self, window(ctx, self, 2, kernel_size, stride, padding, dilation))


@rule("aten.max_pool3d_with_indices.default")
def max_pool3d_with_indices(
    ctx: Context,
    self: Value,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> tuple[Value, Value]:
    return _max_with_places(ctx, self, window(ctx, self, 3, kernel_size, stride, padding, dilation))


# -- means ---------------------------------------------------------------------------------------------------------


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _mean(ctx: Context, self: Value, over: Window, count_include_pad: bool, divisor: int | None) -> Value:
    """Window means, half precision summed in float32; `divisor` replaces the number of elements."""
    if 0 in ctx.shape:
        return build.full(ctx.shape, ctx.dtype, 0)
    operand = build.convert(self, _wide(self.dtype))
    (total,) = over.reduce([operand], [build.full((), operand.dtype, 0)], build.add)
    counts = np.full(over.result, divisor) if divisor else over.counts(count_include_pad)
    return build.convert(
        build.divide(total, build.broadcast(build.array(counts, operand.dtype), total.shape)), ctx.dtype
    )


@rule("aten.avg_pool1d.default")
def avg_pool1d(
    ctx: Context,
    self: Value,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Value:
    return _mean(ctx, self, window(ctx, self, 1, kernel_size, stride, padding), count_include_pad, None)


@rule("aten.avg_pool2d.default")
def avg_pool2d(
    ctx: Context,
    self: Value,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    return _mean(ctx, self, window(ctx, self, 2, kernel_size, stride, padding), count_include_pad, divisor_override)


@rule("aten.avg_pool3d.default")
def avg_pool3d(
    ctx: Context,
    self: Value,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    return _mean(ctx, self, window(ctx, self, 3, kernel_size, stride, padding), count_include_pad, divisor_override)


# -- adaptive windows ----------------------------------------------------------------------------------------------


def _adaptive(size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and stops of torch's adaptive windows, int64 [count] each."""
    at = np.arange(count)
    return at * size // count, ((at + 1) * size + count - 1) // count


def _windows(self: Value, dim: int, count: int, fill: object) -> Value:
    """Splits `dim` into (window, index in the window), with `fill` past a window's end."""
    starts, stops = _adaptive(self.shape[dim], count)
    longest = int((stops - starts).max())
    if self.shape[dim] == count * longest:
        return build.reshape(self, (*self.shape[:dim], count, longest, *self.shape[dim + 1 :]))
    at = starts[:, None] + np.arange(longest)
    taken = build.take(self, build.array(np.minimum(at, self.shape[dim] - 1), torch.int32), dim)
    inside = build.broadcast_in_dim(build.array(at < stops[:, None], torch.bool), taken.shape, [dim, dim + 1])
    return build.select(inside, taken, build.full_like(taken, fill))


def _adaptive_mean(ctx: Context, self: Value, rank: int) -> Value:
    """Means over adaptive windows of the last `rank` dimensions."""
    if 0 in ctx.shape or 0 in self.shape:
        return build.full(ctx.shape, ctx.dtype, 0 if 0 in ctx.shape else float("nan"))
    total, counts = build.convert(self, _wide(self.dtype)), []
    for dim in range(self.rank - rank, self.rank):
        starts, stops = _adaptive(self.shape[dim], ctx.shape[dim])
        counts.append(stops - starts)
        total = build.reduce_with(build.add, _windows(total, dim, ctx.shape[dim], 0), 0, [dim + 1])
    covered = build.array(fold(np.multiply.outer, counts), total.dtype)
    return build.convert(build.divide(total, build.broadcast(covered, total.shape)), ctx.dtype)


@rule("aten.adaptive_avg_pool1d.default")
def adaptive_avg_pool1d(ctx: Context, self: Value, output_size: Sequence[int]) -> Value:
    return _adaptive_mean(ctx, self, 1)


@rule("aten._adaptive_avg_pool2d.default")
def adaptive_avg_pool2d(ctx: Context, self: Value, output_size: Sequence[int]) -> Value:
    return _adaptive_mean(ctx, self, 2)


@rule("aten._adaptive_avg_pool3d.default")
def adaptive_avg_pool3d(ctx: Context, self: Value, output_size: Sequence[int]) -> Value:
    return _adaptive_mean(ctx, self, 3)


def _adaptive_max(ctx: Context, self: Value, rank: int) -> tuple[Value, Value]:
    """(maxima, int64 indices) over adaptive windows of the last `rank` dimensions."""
    if 0 in ctx.shape:
        return build.full(ctx.shape, ctx.dtype, 0), build.full(ctx.shape, torch.int64, 0)
    values, places = self, _places(self, rank)
    lowest = neutral(self.dtype, "amax")
    for dim in range(self.rank - rank, self.rank):
        wide, wide_at = _windows(values, dim, ctx.shape[dim], lowest), _windows(places, dim, ctx.shape[dim], 2**31 - 1)
        initials = [build.full((), self.dtype, lowest), build.full((), torch.int32, 2**31 - 1)]
        values, places = build.reduce([wide, wide_at], initials, [dim + 1], _larger)
    return values, build.convert(places, torch.int64)


@rule("aten.adaptive_max_pool2d.default")
def adaptive_max_pool2d(ctx: Context, self: Value, output_size: Sequence[int]) -> tuple[Value, Value]:
    return _adaptive_max(ctx, self, 2)


@rule("aten.adaptive_max_pool3d.default")
def adaptive_max_pool3d(ctx: Context, self: Value, output_size: Sequence[int]) -> tuple[Value, Value]:
    return _adaptive_max(ctx, self, 3)
