"""Embeddings: rows of a table by index, their norms, and their sums by bag. Indices out of range are clamped, as in index.py."""

from __future__ import annotations

import math
from math import prod

import torch

from ...passes.mlir import stablehlo
from .. import build
from ..emit.context import Context
from ..registry import rule
from ..types import Value
from .index import REDUCTIONS, neutral, replace, written


@rule("aten.embedding.default")
def embedding(
    ctx: Context,
    weight: Value,
    indices: Value,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Value:
    return build.take(weight, indices, 0)


@rule("aten.embedding_renorm.default")
def embedding_renorm(ctx: Context, self: Value, indices: Value, max_norm: float, norm_type: float) -> Value:
    """Scales rows that `indices` name down to `max_norm`; computed in float32."""
    rows = build.convert(self, torch.float32)
    norms = _norms(build.unary(stablehlo.abs, rows), norm_type)
    scale = build.divide(build.full_like(norms, max_norm), build.add(norms, build.full_like(norms, 1e-7)))
    used = written(build.full(norms.shape, torch.bool, False), 0, indices, True, replace)
    smaller = build.logical_and(used, build.compare("gt", norms, build.full_like(norms, max_norm)))
    scale = build.select(smaller, scale, build.full_like(scale, 1))
    return build.convert(build.multiply(rows, build.broadcast_in_dim(scale, rows.shape, [0])), ctx.dtype)


def _norms(sizes: Value, norm_type: float) -> Value:
    """Norm of each row of absolute values [rows, columns]; a norm of type 0 counts nonzero elements."""
    if math.isinf(norm_type):
        return build.reduce_with(
            build.maximum if norm_type > 0 else build.minimum, sizes, 0 if norm_type > 0 else math.inf, [1]
        )
    if norm_type == 0:
        counted = build.convert(build.compare("ne", sizes, build.full_like(sizes, 0)), sizes.dtype)
        return build.reduce_with(build.add, counted, 0, [1])
    return _power(build.reduce_with(build.add, _power(sizes, norm_type), 0, [1]), 1 / norm_type)


def _power(base: Value, exponent: float) -> Value:
    return build.binary(stablehlo.power, base, build.full_like(base, exponent))


BAGS = ("sum", "mean", "amax")


@rule("aten._embedding_bag.default", "aten._embedding_bag_forward_only.default")
def embedding_bag(
    ctx: Context,
    weight: Value,
    indices: Value,
    offsets: Value,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Value | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[Value, Value, Value, Value]:
    """Reduces rows of `weight` [rows, width] per bag, in float32 or wider. Of the other results, which only gradients use, only the bag sizes are computed."""
    bags, width = ctx.shape
    count, dtype = prod(indices.shape), torch.float64 if ctx.dtype is torch.float64 else torch.float32
    starts = build.slice_dim(offsets, 0, 0, bags)
    at = build.iota((count, bags), starts.dtype, 0)
    passed = build.convert(build.compare("le", build.broadcast_in_dim(starts, (count, bags), [1]), at), torch.int32)
    bag = build.subtract(build.reduce_with(build.add, passed, 0, [1]), build.full((count,), torch.int32, 1))
    rows = build.convert(build.take(weight, indices, 0), dtype)
    if per_sample_weights is not None:
        rows = build.multiply(rows, build.broadcast_in_dim(build.convert(per_sample_weights, dtype), rows.shape, [0]))
    if padding_idx >= 0:  # padding belongs to no bag
        bag = build.select(
            build.compare("eq", indices, build.full_like(indices, padding_idx)), build.full_like(bag, bags), bag
        )
    sizes = written(build.full((bags,), torch.int64, 0), 0, bag, 1, build.add)
    total = written(build.full((bags, width), dtype, neutral(dtype, BAGS[mode])), 0, bag, rows, REDUCTIONS[BAGS[mode]])
    filled = build.broadcast_in_dim(build.maximum(sizes, build.full_like(sizes, 1)), total.shape, [0])
    if mode == 1:
        total = build.divide(total, build.convert(filled, dtype))
    elif mode == 2:
        empty = build.broadcast_in_dim(build.compare("eq", sizes, build.full_like(sizes, 0)), total.shape, [0])
        total = build.select(empty, build.full_like(total, 0), total)
    further = [build.full(*type_, 0) for type_ in ctx.results[1:] if type_ is not None]
    further[1] = build.convert(sizes, further[1].dtype) if further[1].shape == sizes.shape else further[1]
    return build.convert(total, ctx.dtype), *further  # type: ignore[return-value]
