"""Which ops are taken apart before lowering, and which are kept because they have a rule of their own.

torch's core decompositions are the base, torch's larger table fills what they leave, and OWN is for ops that torch takes
apart in no way that fits. An op with a rule is never decomposed: its rule is shorter, faster to emit,
and keeps the meaning visible in the module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import inf

import torch
from torch import Tensor

from .errors import LoweringError
from .registry import overload_name, rules

aten = torch.ops.aten


@cache
def decompositions() -> dict[torch._ops.OpOverload, Callable]:
    """Overload -> function, without the ops that have rules."""
    keep = set(rules())
    larger = {op: function for op, function in torch._decomp.decomposition_table.items() if _functional(op)}
    table = {**larger, **torch.export.default_decompositions(), **OWN}
    return {
        op: function
        for op, function in table.items()
        if isinstance(op, torch._ops.OpOverload) and overload_name(op) not in keep
    }


def _functional(op: object) -> bool:
    return isinstance(op, torch._ops.OpOverload) and op.namespace == "aten" and not op._schema.is_mutable


# -- ours ----------------------------------------------------------------------------------------------------------


def as_strided(self: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> Tensor:
    """Elements picked from the operand in the order in which they lie in memory."""
    flat = _in_memory_order(self)
    place: Tensor | int = 0
    for dim, (count, step) in enumerate(zip(size, stride, strict=True)):
        shape = [1] * len(size)
        shape[dim] = count
        place = place + (torch.arange(count, device=self.device) * step).reshape(shape)
    start = (storage_offset or 0) - self.storage_offset()
    if not isinstance(place, Tensor):
        return flat[start].clone()
    return flat[place + start]


def as_strided_scatter(
    self: Tensor, src: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Tensor:
    flat = _in_memory_order(self)
    numbers = torch.arange(flat.numel(), device=self.device)
    place = as_strided(numbers, size, stride, (storage_offset or 0) - self.storage_offset())
    flat = flat.index_put([place.reshape(-1)], src.reshape(-1))
    return _from_memory_order(flat, self)


def _memory_order(self: Tensor) -> list[int]:
    """The dimensions from the largest stride to the smallest; what has gaps or overlaps is refused."""
    order = sorted(range(self.ndim), key=lambda dim: (-self.stride(dim), dim))
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


def _from_memory_order(flat: Tensor, like: Tensor) -> Tensor:
    order = _memory_order(like)
    back = [order.index(dim) for dim in range(like.ndim)]
    return flat.reshape([like.shape[dim] for dim in order]).permute(back).contiguous()


def cdist_forward(x1: Tensor, x2: Tensor, p: float, compute_mode: int | None) -> Tensor:
    difference = (x1.unsqueeze(-2) - x2.unsqueeze(-3)).abs()
    return _distance(difference, p)


def pdist_forward(self: Tensor, p: float = 2.0) -> Tensor:
    rows = self.shape[0]
    first, second = torch.triu_indices(rows, rows, 1, device=self.device).unbind(0)
    return _distance((self[first] - self[second]).abs(), p)


def _distance(difference: Tensor, p: float) -> Tensor:
    if difference.shape[-1] == 0:
        return difference.sum(-1)
    if p == 0:
        return (difference != 0).to(difference.dtype).sum(-1)
    if p == 1:
        return difference.sum(-1)
    if p == 2:
        return (difference * difference).sum(-1).sqrt()
    if p == inf:
        return difference.amax(-1)
    return difference.pow(p).sum(-1).pow(1 / p)


OWN: dict[torch._ops.OpOverload, Callable] = {
    aten.as_strided.default: as_strided,
    aten.as_strided_copy.default: as_strided,
    aten.as_strided_scatter.default: as_strided_scatter,
    aten._cdist_forward.default: cdist_forward,
    aten._pdist_forward.default: pdist_forward,
}
