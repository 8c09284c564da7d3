"""Strided views and resizing in terms of ATen ops that have rules."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from ...passes.torch_private import is_contiguous_or_false, without_modes
from ..errors import LoweringError


def as_strided(self: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> Tensor:
    """Elements picked from the operand in the order in which they lie in memory."""
    flat = _in_memory_order(self)
    start = 0 if storage_offset is None else storage_offset - self.storage_offset()
    if not size:
        return flat[start].clone()
    return flat[_places(self, size, stride) + start]


def as_strided_scatter(
    self: Tensor, src: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Tensor:
    """The operand with the picked elements replaced by `src`."""
    start = 0 if storage_offset is None else storage_offset - self.storage_offset()
    place = torch.add(_places(self, size, stride), start).reshape(-1)  # type: ignore[arg-type]
    flat = _in_memory_order(self).index_put([place], src.reshape(-1))
    order = _memory_order(self)
    back = [order.index(dim) for dim in range(self.ndim)]
    return flat.reshape([self.shape[dim] for dim in order]).permute(back).contiguous()


def _places(self: Tensor, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    place = torch.zeros([1] * len(size), dtype=torch.int64, device=self.device)
    for dim, (count, step) in enumerate(zip(size, stride, strict=True)):
        shape = [1] * len(size)
        shape[dim] = count
        steps = torch.mul(torch.arange(count, device=self.device), step)
        place = place + steps.reshape(shape)
    return place


def _memory_order(self: Tensor) -> list[int]:
    """The dimensions from the largest stride to the smallest; what has gaps or overlaps is refused."""
    order = sorted(range(self.ndim), key=lambda dim: (-self.stride()[dim], dim))
    expected = 1
    for dim in reversed(order):
        if self.shape[dim] != 1 and self.stride(dim) != expected and self.numel():
            raise LoweringError(
                f"as_strided of a tensor of shape {list(self.shape)} and strides {list(self.stride())}, which is a part of "
                "another one's memory",
                next_step="take the part with slicing and views, or call .contiguous() first",
            )
        expected *= self.shape[dim]
    return order


def _in_memory_order(self: Tensor) -> Tensor:
    return self.permute(_memory_order(self)).reshape(-1)


def view(self: Tensor, size: Sequence[int]) -> Any:
    """A view, or a copy where an op that was taken apart has left other strides than those the model's view counts on."""
    if is_contiguous_or_false(self) or _viewable(self, size):
        return NotImplemented
    return self.clone(memory_format=torch.contiguous_format).view(size)


def _viewable(self: Tensor, size: Sequence[int]) -> bool:
    with without_modes():
        try:
            torch.empty_strided(self.shape, self.stride(), dtype=self.dtype, device="meta").view(size)
        except (RuntimeError, ValueError):
            return False
    return True


def resize(self: Tensor, size: Sequence[int], *, memory_format: Any = None) -> Tensor:
    """The first elements in row-major order; what is added has no promised value, and is zero here."""
    count, flat = prod(size), self.reshape(-1)
    if count > flat.shape[0]:
        flat = torch.cat([flat, flat.new_zeros(count - flat.shape[0])])
    return flat[:count].reshape(size)
