"""Softmax and normalization layers; half precision is computed in float32 and rounded once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...passes.mlir import stablehlo
from .. import build
from ..build import add, broadcast, convert, divide, full_like, multiply, reshape, subtract, unary
from ..emit.context import Context
from ..errors import LoweringError
from ..promote import wide
from ..registry import rule
from ..types import Value
from .reduce import along, largest, moments, total


def _check_floating(name: str, operand: Value) -> None:
    """Raises LoweringError if the operand is not floating point."""
    if not operand.dtype.is_floating_point:
        raise LoweringError(
            f"{name} of {str(operand.dtype).removeprefix('torch.')}, which eager torch does not compute either",
            next_step=f"pass a dtype: x.{name}(dim, dtype=torch.float32)",
        )


@rule("aten._softmax.default")
def softmax(ctx: Context, self: Value, dim: int, half_to_float: bool) -> Value:
    _check_floating("softmax", self)
    operand, dims = convert(self, wide(ctx.dtype)), [dim % max(self.rank, 1)] if self.rank else []
    exponentials = unary(stablehlo.exponential, subtract(operand, along(largest(operand, dims), operand, dims)))
    return convert(divide(exponentials, along(total(exponentials, dims), operand, dims)), ctx.dtype)


@rule("aten._log_softmax.default")
def log_softmax(ctx: Context, self: Value, dim: int, half_to_float: bool) -> Value:
    _check_floating("log_softmax", self)
    operand, dims = convert(self, wide(ctx.dtype)), [dim % max(self.rank, 1)] if self.rank else []
    shifted = subtract(operand, along(largest(operand, dims), operand, dims))
    sums = total(unary(stablehlo.exponential, shifted), dims)
    return convert(subtract(shifted, along(unary(stablehlo.log, sums), operand, dims)), ctx.dtype)


@rule("aten.native_layer_norm.default")
def native_layer_norm(
    ctx: Context, input: Value, normalized_shape: Sequence[int], weight: Value | None, bias: Value | None, eps: float
) -> tuple[Value, ...]:
    """(result, mean, 1 / standard deviation), normalized over the last len(normalized_shape) dimensions."""
    operand = convert(input, wide(input.dtype))
    dims = list(range(input.rank - len(normalized_shape), input.rank))
    variance, mean = moments(operand, dims, 0)
    scale = unary(stablehlo.rsqrt, add(variance, full_like(variance, eps)))
    result = multiply(subtract(operand, along(mean, operand, dims)), along(scale, operand, dims))
    if weight is not None:
        result = multiply(result, broadcast(convert(weight, result.dtype), result.shape))
    if bias is not None:
        result = add(result, broadcast(convert(bias, result.dtype), result.shape))
    return (
        convert(result, ctx.dtype),
        *(
            reshape(convert(value, type_.dtype), type_.shape)
            for value, type_ in zip((mean, scale), ctx.results[1:], strict=True)
            if type_ is not None
        ),
    )


@rule("aten._native_batch_norm_legit_no_training.default")
def batch_norm_no_training(
    ctx: Context,
    input: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value,
    running_var: Value,
    momentum: float,
    eps: float,
) -> list[Value]:
    """Normalizes dimension 1 by the running statistics, half precision in float32; saved statistics are empty tensors."""
    precise = torch.float64 if input.dtype is torch.float64 else torch.float32

    def channel(value: Value) -> Value:
        return build.broadcast_in_dim(build.convert(value, precise), input.shape, [1])

    variance = build.convert(running_var, precise)
    scale = build.unary(stablehlo.rsqrt, build.add(variance, build.full_like(variance, eps)))
    output = build.multiply(build.subtract(build.convert(input, precise), channel(running_mean)), channel(scale))
    output = output if weight is None else build.multiply(output, channel(weight))
    output = output if bias is None else build.add(output, channel(bias))
    saved = [build.full(type_.shape, type_.dtype, 0) for type_ in ctx.results[1:] if type_ is not None]
    return [build.convert(output, ctx.dtype), *saved]
