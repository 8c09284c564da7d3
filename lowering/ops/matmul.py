"""Products of matrices. bfloat16 and float16 products are summed in float32, with whatever is added to them, and
rounded once, as torch does; integers wrap around in their own dtype."""

from __future__ import annotations

import torch

from .. import build
from ..context import Context
from ..registry import rule
from ..types import Value

HALVES = (torch.bfloat16, torch.float16)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums of products of `dtype` are kept."""
    return torch.float32 if dtype in HALVES else dtype


def _product(left: Value, right: Value) -> Value:
    """[..., M, K] x [..., K, N] over common leading dimensions, not yet rounded."""
    lead = list(range(left.rank - 2))
    return build.dot_general(
        left, right, contract=([left.rank - 1], [right.rank - 2]), batch=(lead, lead), dtype=accumulator(left.dtype)
    )


def scaled(value: Value, factor: object) -> Value:
    return value if factor == 1 else build.multiply(value, build.full_like(value, factor))


def _added(ctx: Context, self: Value, product: Value, beta: object, alpha: object) -> Value:
    """beta * self + alpha * product; with beta 0, self is not looked at (NaN does not pass)."""
    product = scaled(product, alpha)
    if beta != 0:
        added = scaled(build.convert(self, product.dtype), beta)
        product = build.add(build.broadcast(added, product.shape), product)
    return build.convert(product, ctx.dtype)


@rule("aten.mm.default")
@rule("aten.bmm.default")
def mm(ctx: Context, self: Value, mat2: Value) -> Value:
    return build.convert(_product(self, mat2), ctx.dtype)


@rule("aten.mm.dtype", "aten.bmm.dtype")
def mm_dtype(ctx: Context, self: Value, mat2: Value, out_dtype: torch.dtype) -> Value:
    return build.convert(_product(self, mat2), ctx.dtype)


@rule("aten._int_mm.default")
def int_mm(ctx: Context, self: Value, mat2: Value) -> Value:
    return build.dot_general(self, mat2, contract=([1], [0]), dtype=torch.int32)


@rule("aten.addmm.default")
def addmm(ctx: Context, self: Value, mat1: Value, mat2: Value, *, beta: object = 1, alpha: object = 1) -> Value:
    return _added(ctx, self, _product(mat1, mat2), beta, alpha)


@rule("aten.baddbmm.default")
def baddbmm(ctx: Context, self: Value, batch1: Value, batch2: Value, *, beta: object = 1, alpha: object = 1) -> Value:
    return _added(ctx, self, _product(batch1, batch2), beta, alpha)


@rule("aten.addbmm.default")
def addbmm(ctx: Context, self: Value, batch1: Value, batch2: Value, *, beta: object = 1, alpha: object = 1) -> Value:
    product = build.dot_general(batch1, batch2, contract=([0, 2], [0, 1]), dtype=accumulator(batch1.dtype))
    return _added(ctx, self, product, beta, alpha)


@rule("aten.mv.default")
def mv(ctx: Context, self: Value, vec: Value) -> Value:
    return build.convert(build.dot_general(self, vec, contract=([1], [0]), dtype=accumulator(self.dtype)), ctx.dtype)


@rule("aten.addmv.default")
def addmv(ctx: Context, self: Value, mat: Value, vec: Value, *, beta: object = 1, alpha: object = 1) -> Value:
    return _added(
        ctx, self, build.dot_general(mat, vec, contract=([1], [0]), dtype=accumulator(mat.dtype)), beta, alpha
    )


@rule("aten.addr.default")
def addr(ctx: Context, self: Value, vec1: Value, vec2: Value, *, beta: object = 1, alpha: object = 1) -> Value:
    left, right = (build.convert(vec, ctx.dtype) for vec in (vec1, vec2))
    return _added(
        ctx, self, build.dot_general(left, right, contract=([], []), dtype=accumulator(ctx.dtype)), beta, alpha
    )


@rule("aten.dot.default")
def dot(ctx: Context, self: Value, tensor: Value) -> Value:
    return build.convert(build.dot_general(self, tensor, contract=([0], [0]), dtype=accumulator(self.dtype)), ctx.dtype)


@rule("aten.vdot.default")
def vdot(ctx: Context, self: Value, other: Value) -> Value:
    return dot(ctx, build.conjugate(self), other)
