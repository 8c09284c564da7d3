"""Activation functions with rules of their own; torch decomposes the others."""

from __future__ import annotations

import math

from ...passes.mlir import stablehlo
from ..build import add, erf, full_like, maximum, multiply, unary
from ..emit.context import Context
from ..promote import computed
from ..registry import rule
from ..types import Value


@rule("aten.relu.default")
def relu(ctx: Context, self: Value) -> Value:
    return maximum(self, full_like(self, 0))


@rule("aten.silu.default")
def silu(ctx: Context, self: Value) -> Value:
    return computed(lambda x: multiply(x, unary(stablehlo.logistic, x)), ctx.shape, ctx.dtype, self)


@rule("aten.gelu.default")
def gelu(ctx: Context, self: Value, *, approximate: str = "none") -> Value:
    return computed(_gelu_tanh if approximate == "tanh" else _gelu_erf, ctx.shape, ctx.dtype, self)


def _gelu_erf(x: Value) -> Value:
    """x/2 * (1 + erf(x / sqrt(2)))"""
    half, one = full_like(x, 0.5), full_like(x, 1)
    return multiply(multiply(x, half), add(one, erf(multiply(x, full_like(x, math.sqrt(0.5))))))


def _gelu_tanh(x: Value) -> Value:
    """x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))"""
    half, one = full_like(x, 0.5), full_like(x, 1)
    cube = multiply(multiply(x, x), x)
    inner = multiply(full_like(x, math.sqrt(2 / math.pi)), add(x, multiply(full_like(x, 0.044715), cube)))
    return multiply(multiply(half, x), add(one, unary(stablehlo.tanh, inner)))
