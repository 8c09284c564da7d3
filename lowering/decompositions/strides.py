"""Decomposes strided views and resizing into ATen ops that have rules."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from ...passes.torch_private import is_contiguous_or_false, without_modes
from ..errors import LoweringError


def as_strided(self: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> Tensor:
    """Gathers elements from the operand, flattened in memory order. Raises LoweringError if the operand has gaps or overlaps in memory."""
    flat = _in_memory_order(self)
    start = 0 if storage_offset is None else storage_offset - self.storage_offset()
    if not size:
        return flat[start].clone()
    return flat[_places(self, size, stride) + start]


def as_strided_scatter(
    self: Tensor, src: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Tensor:
    """The operand with the elements of that strided view replaced by `src`."""
    start = 0 if storage_offset is None else storage_offset - self.storage_offset()
    place = torch.add(_places(self, size, stride), start).reshape(-1)  # type: ignore[arg-type]
    flat = _in_memory_order(self).index_put([place], src.reshape(-1))
    order = _memory_order(self)
    back = [order.index(dim) for dim in range(self.ndim)]
    return flat.reshape([self.shape[dim] for dim in order]).permute(back).contiguous()


def _places(self: Tensor, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """int64 [*size]: offset in memory of each element of the view."""
    place = torch.zeros([1] * len(size), dtype=torch.int64, device=self.device)
    for dim, (count, step) in enumerate(zip(size, stride, strict=True)):
        shape = [1] * len(size)
        shape[dim] = count
        steps = torch.mul(torch.arange(count, device=self.device), step)
        place = place + steps.reshape(shape)
    return place


def _memory_order(self: Tensor) -> list[int]:
    """Dimensions from the largest stride to the smallest. Raises LoweringError for strides with gaps or overlaps."""
    order = sorted(range(self.ndim), key=lambda dim: (-self.stride()[dim], dim))
    expected = 1
    for dim in reversed(order):
        if self.stride(dim) != expected and self.shape[dim] != 1 and self.numel():
            raise LoweringError(
                f"as_strided of a tensor of shape {list(self.shape)} and strides {list(self.stride())}, which is a part of "
                "another one's memory",
                next_step="take the part with slicing and views, or call .contiguous() first",
            )
        expected *= self.shape[dim]
    return order


def _in_memory_order(self: Tensor) -> Tensor:
    """1-d: the elements in the order in which they are stored."""
    return self.permute(_memory_order(self)).reshape(-1)


def view(self: Tensor, size: Sequence[int]) -> Any:
    """A view; a copy first if a decomposition changed the strides so that this view is impossible."""
    if is_contiguous_or_false(self) or _viewable(self, size):
        return NotImplemented
    return self.clone(memory_format=torch.contiguous_format).view(size)


def _viewable(self: Tensor, size: Sequence[int]) -> bool:
    """Whether torch can view a tensor of these strides as `size`, tried on the meta device."""
    with without_modes():
        try:
            torch.empty_strided(self.shape, self.stride(), dtype=self.dtype, device="meta").view(size)
        except (RuntimeError, ValueError):
            return False
    return True


def resize(self: Tensor, size: Sequence[int], *, memory_format: Any = None) -> Tensor:
    """The first elements in row-major order; additional elements, which torch leaves uninitialized, are zero."""
    count, flat = prod(size), self.reshape(-1)
    if count > flat.shape[0]:
        flat = torch.cat([flat, flat.new_zeros(count - flat.shape[0])])
    return flat[:count].reshape(size)
