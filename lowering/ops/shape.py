"""Shape ops, which only move elements: views, permutations, slices, concatenation, padding, triangles."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from .. import build
from ..emit.context import Context
from ..registry import rule
from ..types import Value


def axis(dim: int, rank: int) -> int:
    """Non-negative dimension for one that may be negative; a 0-d tensor is treated as 1-d."""
    return dim % max(rank, 1)


# -- reshapes -------------------------------------------------------------------------------------------------------


@rule("aten.view.default", "aten._unsafe_view.default", "aten.view_copy.default")
def view(ctx: Context, self: Value, size: Sequence[int]) -> Value:
    return build.reshape(self, ctx.shape)


@rule("aten.reshape.default")
def reshape(ctx: Context, self: Value, shape: Sequence[int]) -> Value:
    return build.reshape(self, ctx.shape)


@rule("aten._reshape_alias.default", "aten._reshape_alias_copy.default")
def reshape_alias(ctx: Context, self: Value, size: Sequence[int], stride: Sequence[int]) -> Value:
    return build.reshape(self, ctx.shape)


@rule("aten.squeeze.default", "aten.squeeze_copy.default")
def squeeze(ctx: Context, self: Value) -> Value:
    return build.reshape(self, ctx.shape)


@rule("aten.squeeze.dim", "aten.squeeze_copy.dim", "aten.squeeze.dims", "aten.squeeze_copy.dims")
@rule("aten.unsqueeze.default", "aten.unsqueeze_copy.default")
def squeeze_dim(ctx: Context, self: Value, dim: object) -> Value:
    return build.reshape(self, ctx.shape)


@rule("aten.alias.default", "aten.alias_copy.default", "aten.detach.default", "aten.detach_copy.default")
@rule("aten.lift.default", "aten.lift_fresh.default", "aten.lift_fresh_copy.default")
def alias(ctx: Context, self: Value) -> Value:
    return self


@rule("aten.clone.default")
def clone(ctx: Context, self: Value, *, memory_format: object = None) -> Value:
    return self


@rule("aten.contiguous.default")
def contiguous(ctx: Context, self: Value, *, memory_format: object = None) -> Value:
    return self


@rule("prims.copy_strided.default")
def copy_strided(ctx: Context, a: Value, stride: Sequence[int]) -> Value:
    return a


@rule("aten.copy.default")
def copy(ctx: Context, self: Value, src: Value, non_blocking: bool = False) -> Value:
    return build.broadcast(build.convert(src, ctx.dtype), ctx.shape)


# -- repeated elements ---------------------------------------------------------------------------------------------


@rule("aten.expand.default", "aten.expand_copy.default")
def expand(ctx: Context, self: Value, size: Sequence[int], *, implicit: bool = False) -> Value:
    return build.broadcast(self, ctx.shape)


@rule("aten.repeat.default")
def repeat(ctx: Context, self: Value, repeats: Sequence[int]) -> Value:
    """Splits each dimension into (1, size), broadcasts the first to `repeats` and merges both."""
    sizes = (1,) * (len(repeats) - self.rank) + self.shape
    wide = [part for pair in zip(repeats, sizes, strict=True) for part in pair]
    kept = [2 * dim + 1 for dim in range(len(repeats) - self.rank, len(repeats))]
    return build.reshape(build.broadcast_in_dim(self, wide, kept), ctx.shape)


@rule("aten.repeat_interleave.self_int")
def repeat_interleave(
    ctx: Context, self: Value, repeats: int, dim: int | None = None, *, output_size: int | None = None
) -> Value:
    if dim is None:
        self, dim = build.reshape(self, (prod(self.shape),)), 0
    dim = axis(dim, self.rank)
    wide = (*self.shape[: dim + 1], repeats, *self.shape[dim + 1 :])
    kept = [d for d in range(self.rank + 1) if d != dim + 1]
    return build.reshape(build.broadcast_in_dim(self, wide, kept), ctx.shape)


# -- order ---------------------------------------------------------------------------------------------------------


@rule("aten.permute.default", "aten.permute_copy.default")
def permute(ctx: Context, self: Value, dims: Sequence[int]) -> Value:
    return build.transpose(self, [axis(dim, self.rank) for dim in dims])


@rule("aten.transpose.int", "aten.transpose_copy.int")
def transpose(ctx: Context, self: Value, dim0: int, dim1: int) -> Value:
    order = list(range(self.rank))
    if order:
        one, other = axis(dim0, self.rank), axis(dim1, self.rank)
        order[one], order[other] = order[other], order[one]
    return build.transpose(self, order)


@rule("aten.t.default", "aten.t_copy.default")
def t(ctx: Context, self: Value) -> Value:
    return build.transpose(self, range(self.rank)[::-1])


@rule("aten.flip.default")
def flip(ctx: Context, self: Value, dims: Sequence[int]) -> Value:
    if not self.rank or not dims:
        return self
    return build.reverse(self, sorted({axis(dim, self.rank) for dim in dims}))


@rule("aten.roll.default")
def roll(ctx: Context, self: Value, shifts: Sequence[int], dims: Sequence[int] = ()) -> Value:
    """Slices each dimension in two and swaps the parts; without dims the tensor is flattened first."""
    result = self if dims else build.reshape(self, (prod(self.shape),))
    for shift, dim in zip(shifts, dims or (0,), strict=True):
        dim = axis(dim, result.rank)
        size = result.shape[dim] if result.rank else 0
        cut = -shift % size if size else 0
        if cut:
            parts = build.slice_dim(result, dim, cut, size), build.slice_dim(result, dim, 0, cut)
            result = build.concatenate(parts, dim)
    return build.reshape(result, ctx.shape)


# -- parts ---------------------------------------------------------------------------------------------------------


def bounds(size: int, start: int | None, end: int | None) -> tuple[int, int]:
    """(start, end) of a slice, clamped as in torch: 0 <= start <= end <= size."""
    # not slice.indices, whose numbers would forget what they are of (emit/extents.py)
    first, last = (
        default if place is None else max(place + size, 0) if place < 0 else min(place, size)
        for place, default in ((start, 0), (end, size))
    )
    return first, max(first, last)


@rule("aten.slice.Tensor", "aten.slice_copy.Tensor")
def slice_(
    ctx: Context, self: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    dim = axis(dim, self.rank)
    return build.slice_dim(self, dim, *bounds(self.shape[dim], start, end), step)


@rule("aten.narrow.default", "aten.narrow_copy.default")
def narrow(ctx: Context, self: Value, dim: int, start: int, length: int) -> Value:
    dim = axis(dim, self.rank)
    start = start + self.shape[dim] if start < 0 else start
    return build.slice_dim(self, dim, start, start + length)


@rule("aten.select.int", "aten.select_copy.int")
def select(ctx: Context, self: Value, dim: int, index: int) -> Value:
    dim = axis(dim, self.rank)
    index = index % self.shape[dim]
    return build.reshape(build.slice_dim(self, dim, index, index + 1), ctx.shape)


def _cut(self: Value, sizes: Sequence[int], dim: int) -> list[Value]:
    """Splits `dim` into consecutive slices of `sizes`."""
    dim, parts, start = axis(dim, self.rank), [], 0
    for size in sizes:
        parts.append(build.slice_dim(self, dim, start, start + size))
        start += size
    return parts


@rule("aten.split_with_sizes.default", "aten.split_with_sizes_copy.default", "aten.unsafe_split_with_sizes.default")
def split_with_sizes(ctx: Context, self: Value, split_sizes: Sequence[int], dim: int = 0) -> list[Value]:
    return _cut(self, split_sizes, dim)


@rule("aten.split.Tensor", "aten.split_copy.Tensor", "aten.unsafe_split.Tensor")
def split(ctx: Context, self: Value, split_size: int, dim: int = 0) -> list[Value]:
    return _cut(self, [type_.shape[axis(dim, self.rank)] for type_ in ctx.results if type_], dim)


@rule("aten.chunk.default", "aten.unsafe_chunk.default")
def chunk(ctx: Context, self: Value, chunks: int, dim: int = 0) -> list[Value]:
    return _cut(self, [type_.shape[axis(dim, self.rank)] for type_ in ctx.results if type_], dim)


@rule("aten.unbind.int", "aten.unbind_copy.int")
def unbind(ctx: Context, self: Value, dim: int = 0) -> list[Value]:
    shape = self.shape[: axis(dim, self.rank)] + self.shape[axis(dim, self.rank) + 1 :]
    return [build.reshape(part, shape) for part in _cut(self, [1] * self.shape[axis(dim, self.rank)], dim)]


@rule("aten.diagonal.default", "aten.diagonal_copy.default")
def diagonal(ctx: Context, self: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    """Slices the square that the diagonal spans and flattens it: the diagonal is every (length + 1)-th element."""
    dim1, dim2 = axis(dim1, self.rank), axis(dim2, self.rank)
    rest = [dim for dim in range(self.rank) if dim not in (dim1, dim2)]
    length = ctx.shape[-1]
    if not length:
        return build.full(ctx.shape, ctx.dtype, 0)
    moved = build.transpose(self, [*rest, dim1, dim2])
    row, column = max(-offset, 0), max(offset, 0)
    square = build.slice_dim(moved, moved.rank - 2, row, row + length)
    square = build.slice_dim(square, moved.rank - 1, column, column + length)
    flat = build.reshape(square, (*ctx.shape[:-1], length * length))
    return build.slice_dim(flat, flat.rank - 1, 0, length * length, length + 1)


@rule("aten.unfold.default", "aten.unfold_copy.default")
def unfold(ctx: Context, self: Value, dimension: int, size: int, step: int) -> Value:
    """Windows along a dimension, as one strided slice per index in the window, or one slice per window if those are fewer."""
    if not self.rank:
        return build.reshape(self, ctx.shape) if size else build.full(ctx.shape, ctx.dtype, 0)
    dim = axis(dimension, self.rank)
    count = ctx.shape[dim]
    if not size:
        return build.full(ctx.shape, ctx.dtype, 0)
    if size <= count:
        places = [build.slice_dim(self, dim, at, at + (count - 1) * step + 1, step) for at in range(size)]
        return build.concatenate([build.reshape(place, (*place.shape, 1)) for place in places], self.rank)
    order = [*range(dim), *range(dim + 1, self.rank), dim]
    windows = [build.transpose(build.slice_dim(self, dim, at * step, at * step + size), order) for at in range(count)]
    return build.concatenate([build.reshape(w, (*w.shape[:dim], 1, *w.shape[dim:])) for w in windows], dim)


# -- joins ---------------------------------------------------------------------------------------------------------


@rule("aten.cat.default")
def cat(ctx: Context, tensors: Sequence[Value], dim: int = 0) -> Value:
    """Concatenates; operands of shape [0] are skipped (torch's legacy rule), dtypes are promoted."""
    parts = [tensor for tensor in tensors if tensor.shape != (0,)]
    if not parts:
        return build.full(ctx.shape, ctx.dtype, 0)
    return build.concatenate([build.convert(part, ctx.dtype) for part in parts], axis(dim, len(ctx.shape)))


@rule("aten.stack.default")
def stack(ctx: Context, tensors: Sequence[Value], dim: int = 0) -> Value:
    dim = axis(dim, len(ctx.shape))
    shape = (*ctx.shape[:dim], 1, *ctx.shape[dim + 1 :])
    return build.concatenate([build.reshape(build.convert(tensor, ctx.dtype), shape) for tensor in tensors], dim)


# -- borders -------------------------------------------------------------------------------------------------------


@rule("aten.constant_pad_nd.default")
def constant_pad_nd(ctx: Context, self: Value, pad: Sequence[int], value: float = 0) -> Value:
    """`pad` holds (before, after) pairs from the last dimension to the first; negative amounts crop."""
    low, high = [0] * self.rank, [0] * self.rank
    for pair in range(len(pad) // 2):
        low[-1 - pair], high[-1 - pair] = pad[2 * pair], pad[2 * pair + 1]
    return build.pad(self, build.full((), self.dtype, value), low, high)


def _triangle(self: Value, diagonal: int, keep: str) -> Value:
    """Zeroes elements of [..., rows, columns] except where `column - row` compares as `keep` (le or ge) with `diagonal`."""
    if 0 in self.shape:
        return self
    plane = self.shape[-2:]
    rows, columns = build.iota(plane, torch.int32, 0), build.iota(plane, torch.int32, 1)
    distance = build.subtract(columns, rows)
    limit = max(min(diagonal, 2**31 - 1), -(2**31))
    kept = build.broadcast(build.compare(keep, distance, build.full(plane, torch.int32, limit)), self.shape)
    return build.select(kept, self, build.full_like(self, 0))


@rule("aten.tril.default")
def tril(ctx: Context, self: Value, diagonal: int = 0) -> Value:
    return _triangle(self, diagonal, "le")


@rule("aten.triu.default")
def triu(ctx: Context, self: Value, diagonal: int = 0) -> Value:
    return _triangle(self, diagonal, "ge")
