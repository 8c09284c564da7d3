"""Convolution, plain and transposed, with any number of spatial dimensions, groups and dilation."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from .. import build
from ..emit.context import Context
from ..registry import rule
from ..types import Value
from .matmul import accumulator


def each(amounts: Sequence[int], rank: int) -> list[int]:
    """One amount per spatial dimension; torch accepts a single one for all."""
    return list(amounts) if len(amounts) == rank else list(amounts) * rank


@rule("aten.convolution.default")
def convolution(
    ctx: Context,
    input: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Value:
    """input [N, C, ...]; weight [O, C / groups, ...], or [C, O / groups, ...] if transposed. Half precision accumulates in float32."""
    rank = input.rank - 2
    stride, padding, dilation, extra = (each(amounts, rank) for amounts in (stride, padding, dilation, output_padding))
    if 0 in ctx.shape or 0 in input.shape:
        result = build.full(ctx.shape, accumulator(ctx.dtype), 0)
    elif transposed:
        reach = [d * (size - 1) for d, size in zip(dilation, weight.shape[2:], strict=True)]
        low = [r - p for r, p in zip(reach, padding, strict=True)]
        high = [before + e for before, e in zip(low, extra, strict=True)]
        result = build.convolution(
            input,
            _flipped(weight, groups),
            padding=(low, high),
            input_dilation=stride,
            kernel_dilation=dilation,
            groups=groups,
            dtype=accumulator(ctx.dtype),
        )
    else:
        result = build.convolution(
            input,
            weight,
            strides=stride,
            padding=(padding, padding),
            kernel_dilation=dilation,
            groups=groups,
            dtype=accumulator(ctx.dtype),
        )
    if bias is not None:
        result = build.add(result, build.broadcast_in_dim(build.convert(bias, result.dtype), result.shape, [1]))
    return build.convert(result, ctx.dtype)


def _flipped(weight: Value, groups: int) -> Value:
    """[C, O / groups, ...] -> [O, C / groups, ...], spatially reversed: the kernel of the plain convolution equal to the transposed one."""
    channels, per_group, *window = weight.shape
    grouped = build.reshape(weight, (groups, channels // groups, per_group, *window))
    swapped = build.transpose(grouped, [0, 2, 1, *range(3, grouped.rank)])
    kernel = build.reshape(swapped, (groups * per_group, channels // groups, *window))
    return build.reverse(kernel, range(2, kernel.rank)) if prod(window) != 1 else kernel
