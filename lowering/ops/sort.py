"""Orders. NaN counts as greater than every number, -0.0 equals 0.0, and equal elements keep their order, in both directions."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .. import build
from ..context import Context
from ..registry import rule
from ..types import Value
from .shape import axis


def before(descending: bool) -> Callable[..., Value]:
    """The comparator of build.sort for the first of the sorted operands; further operands only travel along."""

    def comes_first(left: Value, right: Value, *_: Value) -> Value:
        if not left.dtype.is_floating_point:
            return build.compare("gt" if descending else "lt", left, right)
        number = right if descending else left
        beyond = build.logical_not(build.compare("le" if descending else "ge", left, right))  # true where either is NaN
        return build.logical_and(beyond, build.compare("eq", number, number))

    return comes_first


def sorted_with_indices(self: Value, dim: int, descending: bool) -> tuple[Value, Value]:
    """Sorted values and where they came from (int64)."""
    if not self.rank:
        return self, build.full((), torch.int64, 0)
    dim = axis(dim, self.rank)
    if 0 in self.shape:
        return self, build.full(self.shape, torch.int64, 0)
    values, indices = build.sort([self, build.iota(self.shape, torch.int32, dim)], dim, before(descending))
    return values, build.convert(indices, torch.int64)


@rule("aten.sort.default")
def sort(ctx: Context, self: Value, dim: int = -1, descending: bool = False) -> tuple[Value, Value]:
    return sorted_with_indices(self, dim, descending)


@rule("aten.sort.stable")
def sort_stable(ctx: Context, self: Value, *, stable: bool | None, dim: int = -1, descending: bool = False) -> tuple[Value, Value]:
    return sorted_with_indices(self, dim, descending)


@rule("aten.topk.default")
def topk(ctx: Context, self: Value, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Value, Value]:
    """The first k of a stable sort: of equal elements the ones that stand first."""
    values, indices = sorted_with_indices(self, dim, largest)
    if not self.rank:
        return build.reshape(values, ctx.shape), build.reshape(indices, ctx.shape)
    dim = axis(dim, self.rank)
    return build.slice_dim(values, dim, 0, k), build.slice_dim(indices, dim, 0, k)
