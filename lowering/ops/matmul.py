"""Matmuls. bfloat16 and float16 accumulate in float32, including an added bias, and are rounded once, as in torch;
integers accumulate, and wrap around, in their own dtype."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from ...runtime.core.errors import UnsupportedError
from .. import build
from ..emit.context import Context
from ..registry import rule
from ..types import Value

HALVES = (torch.bfloat16, torch.float16)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Accumulation dtype of a dot in `dtype`."""
    return torch.float32 if dtype in HALVES else dtype


def _product(left: Value, right: Value) -> Value:
    """[..., M, K] x [..., K, N] with equal batch dimensions -> [..., M, N] in the accumulation dtype."""
    lead = list(range(left.rank - 2))
    return build.dot_general(
        left, right, contract=([left.rank - 1], [right.rank - 2]), batch=(lead, lead), dtype=accumulator(left.dtype)
    )


def scaled(value: Value, factor: object) -> Value:
    """factor * value, without an op for factor 1."""
    return value if factor == 1 else build.multiply(value, build.full_like(value, factor))


def _added(ctx: Context, self: Value, product: Value, beta: object, alpha: object, *, skips: bool = False) -> Value:
    """beta * self + alpha * product, rounded to ctx.dtype; with beta 0, self is not read (its NaN does not propagate).

    skips: whether with alpha 0 the product is not read either, as in BLAS.
    """
    product = build.full_like(product, 0) if skips and alpha == 0 else scaled(product, alpha)
    if beta != 0:
        added = scaled(build.convert(self, product.dtype), beta)
        product = build.add(build.broadcast(added, product.shape), product)
    return build.convert(product, ctx.dtype)


BLAS = (torch.float32, torch.float64, torch.complex64, torch.complex128)
"""Dtypes whose matmuls ATen passes to BLAS, which skips the product for alpha 0; ATen's own loops multiply, so that NaN propagates."""
SMALL_BATCH = 400
"""Multiplications per matrix below which baddbmm uses ATen's own loop (LinearAlgebra.cpp)."""


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
    return _added(ctx, self, _product(mat1, mat2), beta, alpha, skips=ctx.dtype in BLAS)


@rule("aten.baddbmm.default")
def baddbmm(ctx: Context, self: Value, batch1: Value, batch2: Value, *, beta: object = 1, alpha: object = 1) -> Value:
    large = prod(ctx.shape[1:]) * batch1.shape[2] >= SMALL_BATCH
    return _added(ctx, self, _product(batch1, batch2), beta, alpha, skips=large and ctx.dtype in BLAS)


@rule("aten.addbmm.default")
def addbmm(ctx: Context, self: Value, batch1: Value, batch2: Value, *, beta: object = 1, alpha: object = 1) -> Value:
    product = build.dot_general(batch1, batch2, contract=([0, 2], [0, 1]), dtype=accumulator(batch1.dtype))
    return _added(ctx, self, product, beta, alpha, skips=ctx.dtype in BLAS)


@rule("aten.mv.default")
def mv(ctx: Context, self: Value, vec: Value) -> Value:
    return build.convert(build.dot_general(self, vec, contract=([1], [0]), dtype=accumulator(self.dtype)), ctx.dtype)


@rule("aten.addmv.default")
def addmv(ctx: Context, self: Value, mat: Value, vec: Value, *, beta: object = 1, alpha: object = 1) -> Value:
    product = build.dot_general(mat, vec, contract=([1], [0]), dtype=accumulator(mat.dtype))
    return _added(ctx, self, product, beta, alpha, skips=ctx.dtype in BLAS and not ctx.dtype.is_complex)


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


@rule("aten._scaled_mm.default")
def scaled_mm(
    ctx: Context,
    self: Value,
    mat2: Value,
    scale_a: Value,
    scale_b: Value,
    bias: Value | None = None,
    scale_result: Value | None = None,
    out_dtype: torch.dtype | None = None,
    use_fast_accum: bool = False,
) -> Value:
    """float8 [M, K] x [K, N] with one scale per tensor, or per row and per column; accumulates in float32. Raises UnsupportedError for other scales."""
    wide = [build.convert(operand, torch.float32) for operand in (self, mat2)]
    product = build.dot_general(*wide, contract=([1], [0]), dtype=torch.float32)
    for scale in (scale_a, scale_b):
        if prod(scale.shape) != 1 and [size for size in scale.shape if size != 1] not in ([size] for size in ctx.shape):
            raise UnsupportedError(
                f"_scaled_mm with scales of shape {list(scale.shape)} for a result of {list(ctx.shape)}",
                next_step="scale whole tensors, or rows and columns",
            )
        scale = build.reshape(scale, ()) if prod(scale.shape) == 1 else scale
        product = build.multiply(product, build.broadcast(build.convert(scale, torch.float32), ctx.shape))
    if bias is not None:
        product = build.add(product, build.broadcast(build.convert(bias, torch.float32), ctx.shape))
    if scale_result is not None and ctx.dtype.itemsize == 1:
        scale = build.broadcast(build.reshape(build.convert(scale_result, torch.float32), ()), ctx.shape)
        product = build.multiply(product, scale)
    return build.convert(product, ctx.dtype)


@rule("aten._scaled_mm_v2.default")
def scaled_mm_v2(
    ctx: Context,
    self: Value,
    mat2: Value,
    scale_a: Sequence[Value],
    recipe_a: Sequence[int],
    swizzle_a: Sequence[int],
    scale_b: Sequence[Value],
    recipe_b: Sequence[int],
    swizzle_b: Sequence[int],
    bias: Value | None,
    out_dtype: torch.dtype | None,
    contraction_dim: Sequence[int] = (),
    use_fast_accum: bool = False,
) -> Value:
    """Supports recipes 0 (one scale per tensor) and 1 (one per row). Raises UnsupportedError for block scales and swizzles."""
    if {*recipe_a, *recipe_b} - {0, 1} or any([*swizzle_a, *swizzle_b]) or len(scale_a) != 1 or len(scale_b) != 1:
        raise UnsupportedError("_scaled_mm_v2 with block scales", next_step="scale whole tensors, or rows and columns")
    columns = scale_b[0] if recipe_b[0] == 0 else build.reshape(scale_b[0], (1, prod(scale_b[0].shape)))
    return scaled_mm(ctx, self, mat2, scale_a[0], columns, bias)


# -- grouped matmul ------------------------------------------------------------------------------------------------


def _members(offs: Value, size: int) -> Value:
    """bool [groups, size]: which indices belong to each group; `offs` [groups] holds the groups' ends. Indices past the last end belong to none."""
    groups = offs.shape[0]
    ends = build.convert(offs, torch.int32)
    starts = build.concatenate([build.full((1,), torch.int32, 0), build.slice_dim(ends, 0, 0, groups - 1)], 0)
    places = build.iota((groups, size), torch.int32, 1)
    start, end = (build.broadcast_in_dim(bound, places.shape, [0]) for bound in (starts, ends))
    return build.logical_and(build.compare("ge", places, start), build.compare("lt", places, end))


def _spread(operand: Value, members: Value, dim: int) -> Value:
    """[groups, *operand.shape]: the operand per group, zero outside the group's indices along `dim`."""
    shape = (members.shape[0], *operand.shape)
    chosen = build.broadcast_in_dim(members, shape, [0, dim + 1])
    return build.select(
        chosen, build.broadcast_in_dim(operand, shape, range(1, len(shape))), build.full(shape, operand.dtype, 0)
    )


@rule("aten._grouped_mm.default")
def grouped_mm(
    ctx: Context,
    self: Value,
    mat2: Value,
    offs: Value | None = None,
    bias: Value | None = None,
    out_dtype: torch.dtype | None = None,
) -> Value:
    """Grouped matmul: rows, columns or contracted indices come in groups, and each group has its own matrix.

    Emitted as one dot over (group, index), with elements of other groups set to zero.
    """
    dtype = accumulator(self.dtype)
    if offs is None:
        product = _product(self, mat2)
    elif self.rank == 2 and mat2.rank == 3:  # [N, K] x [G, K, M]
        rows = _spread(self, _members(offs, self.shape[0]), 0)
        product = build.dot_general(rows, mat2, contract=([0, 2], [0, 1]), dtype=dtype)
    elif self.rank == 3 and mat2.rank == 2:  # [G, N, K] x [K, M]
        columns = _spread(mat2, _members(offs, mat2.shape[1]), 1)
        product = build.dot_general(self, columns, contract=([0, 2], [0, 1]), dtype=dtype)
    else:  # [N, K] x [K, M], K in groups
        summed = _spread(mat2, _members(offs, mat2.shape[0]), 0)
        product = build.transpose(build.dot_general(self, summed, contract=([1], [1]), dtype=dtype), [1, 0, 2])
    if bias is not None:
        product = build.add(product, build.broadcast(build.convert(bias, product.dtype), product.shape))
    return build.convert(product, ctx.dtype)


@rule("transformers.grouped_mm_fallback.default")
def grouped_mm_fallback(ctx: Context, input: Value, weight: Value, offs: Value) -> Value:
    """transformers' mixtures of experts call this op where torch has no grouped matmul."""
    return grouped_mm(ctx, input, weight, offs)
