"""Decomposes creation ops with tensor arguments: linspace whose ends are tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...passes import torch_private


def linspace(
    start: Tensor | float, end: Tensor | float, steps: int, *, dtype: torch.dtype | None = None, layout: Any = None,
    device: Any = None, pin_memory: bool | None = None,
) -> Tensor:  # fmt: skip
    """linspace whose ends are 0-d tensors. For integer dtypes ATen truncates both ends before it divides; torch's decomposition does not."""
    if dtype is None or dtype.is_floating_point or dtype.is_complex:
        options = {"dtype": dtype, "layout": layout or torch.strided, "device": device, "pin_memory": bool(pin_memory)}
        return torch_private.linspace(start, end, steps, **options)
    first, last = (
        edge.to(dtype).to(torch.float64) if isinstance(edge, Tensor) else float(int(edge)) for edge in (start, end)
    )
    place = torch.arange(steps)
    step = (last - first) / max(steps - 1, 1)
    from_last = torch.rsub(place, steps - 1)
    return torch.where(place < max(steps // 2, 1), first + step * place, last - step * from_last).to(dtype)
