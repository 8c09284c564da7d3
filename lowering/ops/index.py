"""Indexing by tensors: gather, scatter, masks.

Negative indices count from the end in the ops that accept them in torch (index, index_put, take, put, index_fill); the other
ops reject them. An out-of-range index is an error in eager torch; here reads are clamped to the nearest element and
writes are dropped, as StableHLO's gather and scatter define (docs/semantics.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch

from ...runtime.core.errors import UnsupportedError
from .. import build
from ..emit.context import Context
from ..registry import rule
from ..types import Value
from .cumulative import scan
from .shape import axis

MASKS = (torch.bool, torch.uint8)


def wrapped(index: Value, size: int) -> Value:
    """Indices with negative ones counted from the end of a dimension of `size`."""
    negative = build.compare("lt", index, build.full_like(index, 0))
    return build.select(negative, build.add(index, build.full_like(index, size)), index)


def replace(old: Value, update: Value) -> Value:
    """Scatter body that overwrites."""
    return update


# -- one dimension -------------------------------------------------------------------------------------------------


@rule("aten.index_select.default")
def index_select(ctx: Context, self: Value, dim: int, index: Value) -> Value:
    dim = axis(dim, self.rank)
    self = self if self.rank else build.reshape(self, (1,))
    return build.reshape(build.take(self, build.reshape(index, (prod(index.shape),)), dim), ctx.shape)


@rule("aten.take.default")
def take(ctx: Context, self: Value, index: Value) -> Value:
    flat = build.reshape(self, (prod(self.shape),))
    return build.take(flat, wrapped(index, flat.shape[0]), 0)


# -- one index per element: gather and scatter ---------------------------------------------------------------------


def _lined_up(self: Value, *others: Value) -> list[Value]:
    """Operands, 0-d ones as 1-d: torch's gather and scatter accept both."""
    return [value if value.rank else build.reshape(value, (1,)) for value in (self, *others)]


@rule("aten.gather.default")
def gather(ctx: Context, self: Value, dim: int, index: Value, *, sparse_grad: bool = False) -> Value:
    self, index = _lined_up(self, index)
    return build.reshape(gathered(self, axis(dim, self.rank), index), ctx.shape)


def gathered(self: Value, dim: int, index: Value) -> Value:
    """torch.gather: one StableHLO gather, with the other dimensions of self, sliced to the index's sizes, as batch dimensions."""
    if 0 in index.shape:
        return build.full(index.shape, self.dtype, 0)
    rest = [d for d in range(self.rank) if d != dim]
    limits = [self.shape[d] if d == dim else index.shape[d] for d in range(self.rank)]
    return build.gather(
        build.slice_(self, [0] * self.rank, limits),
        build.reshape(index, (*index.shape, 1)),
        offset_dims=[],
        collapsed=[dim],
        start_index_map=[dim],
        slice_sizes=[1] * self.rank,
        shape=index.shape,
        operand_batching=rest,
        indices_batching=rest,
    )


def scattered(self: Value, dim: int, index: Value, updates: Value, body: Callable[[Value, Value], Value]) -> Value:
    """Applies `body(old, update)` at each index along `dim`; `updates` has the shape of `index`, and all operands are at least 1-d."""
    if 0 in index.shape or 0 in self.shape:
        return self
    batch = [d for d in range(self.rank) if d != dim and index.shape[d] == self.shape[d]]
    named = [d for d in range(self.rank) if d not in batch]
    parts = [index if d == dim else build.iota(index.shape, index.dtype, d) for d in named]
    starts = build.concatenate([build.reshape(part, (*index.shape, 1)) for part in parts], index.rank)
    return build.scatter(
        self, starts, updates, body,
        update_window_dims=[], inserted=named, scatter_dims=named, operand_batching=batch, indices_batching=batch,
    )  # fmt: skip


def _scatter(self: Value, dim: int, index: Value, src: Value | object, body: Callable[[Value, Value], Value]) -> Value:
    """`scattered` for operands of any rank, with `src` a tensor (sliced to the index's sizes) or a scalar."""
    shape, (operand, index) = self.shape, _lined_up(self, index)
    if isinstance(src, Value):
        (src,) = _lined_up(src)
        updates = build.convert(build.slice_(src, [0] * src.rank, index.shape), self.dtype)
    else:
        updates = build.full(index.shape, self.dtype, src)
    return build.reshape(scattered(operand, axis(dim, operand.rank), index, updates, body), shape)


@rule("aten.scatter.src")
def scatter(ctx: Context, self: Value, dim: int, index: Value, src: Value) -> Value:
    return _scatter(self, dim, index, src, replace)


@rule("aten.scatter.value")
def scatter_value(ctx: Context, self: Value, dim: int, index: Value, value: object) -> Value:
    return _scatter(self, dim, index, value, replace)


@rule("aten.scatter_add.default")
def scatter_add(ctx: Context, self: Value, dim: int, index: Value, src: Value) -> Value:
    return _scatter(self, dim, index, src, build.add)


REDUCTIONS: dict[str, Callable[[Value, Value], Value]] = {
    "add": build.add,
    "multiply": build.multiply,
    "sum": build.add,
    "mean": build.add,
    "prod": build.multiply,
    "amax": build.maximum,
    "amin": build.minimum,
}


@rule("aten.scatter.reduce")
def scatter_op(ctx: Context, self: Value, dim: int, index: Value, src: Value, *, reduce: str) -> Value:
    return _scatter(self, dim, index, src, REDUCTIONS[reduce])


@rule("aten.scatter.value_reduce")
def scatter_value_op(ctx: Context, self: Value, dim: int, index: Value, value: object, *, reduce: str) -> Value:
    return _scatter(self, dim, index, value, REDUCTIONS[reduce])


def neutral(dtype: torch.dtype, reduce: str) -> object:
    """Neutral element of a reduction (a key of REDUCTIONS) in `dtype`."""
    if reduce in ("sum", "add", "mean"):
        return 0
    if reduce in ("prod", "multiply"):
        return 1
    if dtype.is_floating_point:
        return float("-inf") if reduce == "amax" else float("inf")
    if dtype is torch.bool:
        return reduce == "amin"
    limits = torch.iinfo(dtype)
    return limits.min if reduce == "amax" else limits.max


def _divided(total: Value, count: Value) -> Value:
    """total / max(count, 1), rounded down for integers, as in torch's mean of scattered elements."""
    count = build.convert(build.maximum(count, build.full_like(count, 1)), total.dtype)
    if total.dtype.is_floating_point or total.dtype.is_complex:
        return build.divide(total, count)
    quotient = build.divide(total, count)
    down = build.compare("lt", total, build.multiply(quotient, count))
    return build.select(down, build.subtract(quotient, build.full_like(quotient, 1)), quotient)


def reduced(
    self: Value,
    reduce: str,
    include_self: bool,
    write: Callable[[Value, Value | object, Callable[[Value, Value], Value]], Value],
    src: Value,
) -> Value:
    """scatter_reduce and index_reduce; `write(operand, updates, body)` is the scatter of the op."""
    start = self if include_self else write(self, neutral(self.dtype, reduce), replace)
    result = write(start, src, REDUCTIONS[reduce])
    if reduce != "mean":
        return result
    counts = write(build.full(self.shape, torch.int32, int(include_self)), 1, build.add)
    return _divided(result, counts)


@rule("aten.scatter_reduce.two")
def scatter_reduce(
    ctx: Context, self: Value, dim: int, index: Value, src: Value, reduce: str, *, include_self: bool = True
) -> Value:
    return reduced(
        self, reduce, include_self, lambda operand, updates, body: _scatter(operand, dim, index, updates, body), src
    )


# -- one index per slice: index_add and similar --------------------------------------------------------------------


def written(
    self: Value, dim: int, index: Value, source: Value | object, body: Callable[[Value, Value], Value]
) -> Value:
    """Applies `body(old, update)` to whole slices: slice i of `source` (or a scalar) updates slice index[i] along `dim`."""
    operand = self if self.rank else build.reshape(self, (1,))
    dim, index = axis(dim, operand.rank), build.reshape(index, (prod(index.shape),))
    shape = (*operand.shape[:dim], index.shape[0], *operand.shape[dim + 1 :])
    if 0 in shape or 0 in operand.shape:
        return self
    updates = (
        build.convert(build.reshape(source, shape), self.dtype)
        if isinstance(source, Value)
        else build.full(shape, self.dtype, source)
    )
    result = build.scatter(
        operand, build.reshape(index, (*index.shape, 1)), updates, body,
        update_window_dims=[d for d in range(operand.rank) if d != dim], inserted=[dim], scatter_dims=[dim],
    )  # fmt: skip
    return build.reshape(result, self.shape)


@rule("aten.index_add.default")
def index_add(ctx: Context, self: Value, dim: int, index: Value, source: Value, *, alpha: object = 1) -> Value:
    source = source if alpha == 1 else build.multiply(source, build.full_like(source, alpha))
    return written(self, dim, index, source, build.add)


@rule("aten.index_copy.default")
def index_copy(ctx: Context, self: Value, dim: int, index: Value, source: Value) -> Value:
    return written(self, dim, index, source, replace)


def _size_of(self: Value, dim: int) -> int:
    """Size of a dimension; 1 for a 0-d tensor."""
    return self.shape[axis(dim, self.rank)] if self.rank else 1


@rule("aten.index_fill.int_Scalar")
def index_fill(ctx: Context, self: Value, dim: int, index: Value, value: object) -> Value:
    return written(self, dim, wrapped(index, _size_of(self, dim)), value, replace)


@rule("aten.index_fill.int_Tensor")
def index_fill_tensor(ctx: Context, self: Value, dim: int, index: Value, value: Value) -> Value:
    operand = self if self.rank else build.reshape(self, (1,))
    shape = [prod(index.shape) if d == axis(dim, operand.rank) else size for d, size in enumerate(operand.shape)]
    source = build.broadcast(build.reshape(value, ()), shape)
    return written(self, dim, wrapped(index, _size_of(self, dim)), source, replace)


@rule("aten.index_reduce.default")
def index_reduce(
    ctx: Context, self: Value, dim: int, index: Value, source: Value, reduce: str, *, include_self: bool = True
) -> Value:
    return reduced(
        self, reduce, include_self, lambda operand, updates, body: written(operand, dim, index, updates, body), source
    )


# -- several index tensors: x[i, :, j] -----------------------------------------------------------------------------


def _placed(self: Value, indices: Sequence[Value | None]) -> tuple[list[int], list[Value]]:
    """(indexed dimensions, their non-negative indices). Raises UnsupportedError for masks, whose result shape depends on data."""
    dims = [dim for dim, index in enumerate(indices) if index is not None]
    given = [index for index in indices if index is not None]
    if any(index.dtype in MASKS for index in given):
        raise UnsupportedError(
            "the shape of a tensor indexed by a mask depends on the mask's values: a compiled module's shapes are fixed",
            next_step="use torch.where or multiply by the mask, which keep the shape",
        )
    return dims, [wrapped(index, self.shape[dim]) for dim, index in zip(dims, given, strict=True)]


def _starts(indices: Sequence[Value]) -> Value:
    """Start indices [*broadcast shape, number of indices] from index tensors, broadcast together."""
    shape = torch.broadcast_shapes(*[index.shape for index in indices])
    dtype = indices[0].dtype if len({index.dtype for index in indices}) == 1 else torch.int64
    parts = [build.reshape(build.broadcast(build.convert(index, dtype), shape), (*shape, 1)) for index in indices]
    return build.concatenate(parts, len(shape))


def _front(dims: Sequence[int]) -> int:
    """Position of the indices' dimensions in the result: that of the indexed dimensions if they are adjacent, else 0."""
    return dims[0] if list(dims) == list(range(dims[0], dims[0] + len(dims))) else 0


@rule("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index(ctx: Context, self: Value, indices: Sequence[Value | None]) -> Value:
    dims, given = _placed(self, indices)
    if 0 in ctx.shape or 0 in self.shape:
        return build.full(ctx.shape, ctx.dtype, 0)
    starts = _starts(given)
    front, rank = _front(dims), starts.rank - 1
    offsets = [d for d in range(len(ctx.shape)) if not front <= d < front + rank]
    sizes = [1 if dim in dims else size for dim, size in enumerate(self.shape)]
    return build.gather(
        self, starts, offset_dims=offsets, collapsed=dims, start_index_map=dims, slice_sizes=sizes, shape=ctx.shape
    )


@rule("aten.index_put.default")
def index_put(
    ctx: Context, self: Value, indices: Sequence[Value | None], values: Value, accumulate: bool = False
) -> Value:
    given = [index for index in indices if index is not None]
    if len(given) == 1 and given[0].dtype in MASKS:
        return _masked_put(self, indices, values, accumulate)
    dims, given = _placed(self, indices)
    starts = _starts(given)
    front, rank = _front(dims), starts.rank - 1
    rest = [size for dim, size in enumerate(self.shape) if dim not in dims]
    shape = (*rest[:front], *starts.shape[:-1], *rest[front:])
    if 0 in shape or 0 in self.shape:
        return self
    windows = [d for d in range(len(shape)) if not front <= d < front + rank]
    return build.scatter(
        self, starts, build.broadcast(values, shape), build.add if accumulate else replace,
        update_window_dims=windows, inserted=dims, scatter_dims=dims,
    )  # fmt: skip


@rule("aten._unsafe_index_put.default")
def unsafe_index_put(
    ctx: Context, self: Value, indices: Sequence[Value | None], values: Value, accumulate: bool = False
) -> Value:
    return index_put(ctx, self, indices, values, accumulate)


def _masked_put(self: Value, indices: Sequence[Value | None], values: Value, accumulate: bool) -> Value:
    """x[:, mask] = v as a select, for one v for all True elements. Raises UnsupportedError for one value per True element."""
    first = next(dim for dim, index in enumerate(indices) if index is not None)
    mask = indices[first]
    assert mask is not None
    rest = self.rank - first - mask.rank
    trues = values.shape[len(values.shape) - rest - 1] if values.rank > rest else 1
    if trues != 1:
        raise UnsupportedError(
            "an assignment through a mask takes one value per True element, and their number depends on data",
            next_step="assign one value, or use torch.where(mask, values, x) with values of x's shape",
        )
    lead = values.shape[: max(values.rank - rest - 1, 0)]
    tail = values.shape[len(values.shape) - rest :] if values.rank > rest else values.shape
    if values.rank > rest:
        values = build.reshape(values, (*lead, *(1,) * mask.rank, *tail))
    mask = build.broadcast_in_dim(build.convert(mask, torch.bool), self.shape, range(first, first + mask.rank))
    values = build.broadcast(values, self.shape)
    return build.select(mask, build.add(self, values) if accumulate else values, self)


@rule("aten.put.default")
def put(ctx: Context, self: Value, index: Value, source: Value, accumulate: bool = False) -> Value:
    flat = build.reshape(self, (prod(self.shape),))
    index = build.reshape(wrapped(index, flat.shape[0]), (prod(index.shape),))
    updates = build.reshape(source, index.shape)
    return build.reshape(scattered(flat, 0, index, updates, build.add if accumulate else replace), self.shape)


# -- masks ---------------------------------------------------------------------------------------------------------


@rule("aten.masked_fill.Scalar")
def masked_fill(ctx: Context, self: Value, mask: Value, value: object) -> Value:
    fill = build.full(ctx.shape, ctx.dtype, value)
    return build.select(build.broadcast(mask, ctx.shape), fill, build.broadcast(self, ctx.shape))


@rule("aten.masked_fill.Tensor")
def masked_fill_tensor(ctx: Context, self: Value, mask: Value, value: Value) -> Value:
    fill = build.broadcast(build.convert(build.reshape(value, ()), ctx.dtype), ctx.shape)
    return build.select(build.broadcast(mask, ctx.shape), fill, build.broadcast(self, ctx.shape))


def _ranks(mask: Value) -> Value:
    """int32 [n]: for each element of a 1-d mask, the number of True elements before it."""
    ones = build.convert(mask, torch.int32)
    (counts,) = scan([ones], [0], 0, lambda earlier, later: [build.add(earlier, later)])
    return build.subtract(counts, ones)


@rule("aten.masked_scatter.default")
def masked_scatter(ctx: Context, self: Value, mask: Value, source: Value) -> Value:
    """The n-th True element takes the n-th element of source, found by a running count, so that shapes do not depend on data."""
    if 0 in ctx.shape or 0 in source.shape:
        return build.broadcast(self, ctx.shape)
    chosen = build.broadcast(mask, ctx.shape)
    flat = build.reshape(chosen, (prod(ctx.shape),))
    taken = build.take(build.reshape(source, (prod(source.shape),)), _ranks(flat), 0)
    return build.select(chosen, build.reshape(taken, ctx.shape), build.broadcast(self, ctx.shape))


@rule("aten.nonzero_static.default")
def nonzero_static(ctx: Context, self: Value, *, size: int, fill_value: int = -1) -> Value:
    """Each nonzero element scatters its indices into the row of its running count; rows past `size` are dropped."""
    count = prod(self.shape)
    if 0 in ctx.shape or not count:
        return build.full(ctx.shape, ctx.dtype, fill_value)
    mask = build.reshape(build.convert(self, torch.bool), (count,))
    rows = build.select(mask, _ranks(mask), build.full((count,), torch.int32, size))
    places = [build.reshape(build.iota(self.shape, torch.int64, dim), (count, 1)) for dim in range(self.rank)]
    return build.scatter(
        build.full(ctx.shape, torch.int64, fill_value), build.reshape(rows, (count, 1)), build.concatenate(places, 1), replace,
        update_window_dims=[1], inserted=[0], scatter_dims=[0],
    )  # fmt: skip
