"""Softmax and normalization layers: computed in float32 for narrow floats, rounded once."""

from __future__ import annotations

from collections.abc import Sequence

from ...passes.mlir import stablehlo
from ..build import add, broadcast, convert, divide, full_like, multiply, reshape, subtract, unary
from ..context import Context
from ..promote import wide
from ..registry import rule
from ..types import Value
from .reduce import along, largest, moments, total


@rule("aten._softmax.default")
def softmax(ctx: Context, self: Value, dim: int, half_to_float: bool) -> Value:
    operand, dims = convert(self, wide(ctx.dtype)), [dim % max(self.rank, 1)] if self.rank else []
    exponentials = unary(stablehlo.exponential, subtract(operand, along(largest(operand, dims), operand, dims)))
    return convert(divide(exponentials, along(total(exponentials, dims), operand, dims)), ctx.dtype)


@rule("aten._log_softmax.default")
def log_softmax(ctx: Context, self: Value, dim: int, half_to_float: bool) -> Value:
    operand, dims = convert(self, wide(ctx.dtype)), [dim % max(self.rank, 1)] if self.rank else []
    shifted = subtract(operand, along(largest(operand, dims), operand, dims))
    sums = total(unary(stablehlo.exponential, shifted), dims)
    return convert(subtract(shifted, along(unary(stablehlo.log, sums), operand, dims)), ctx.dtype)


@rule("aten.native_layer_norm.default")
def native_layer_norm(
    ctx: Context, input: Value, normalized_shape: Sequence[int], weight: Value | None, bias: Value | None, eps: float
) -> tuple[Value, ...]:
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
        ),
    )
