"""Decomposes reductions without a StableHLO op: the hash of a tensor, and segment reductions."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor


def hash_tensor(self: Tensor, dim: Sequence[int] = (), *, keepdim: bool = False, mode: int = 0) -> Tensor:
    """uint64 exclusive or of the elements' bits (mode 0), floats converted to float64 and integers to int64."""
    wide = self.to(torch.float64).view(torch.int64) if self.dtype.is_floating_point else self.to(torch.int64)
    dims = [one % max(self.ndim, 1) for one in dim] if len(dim) else list(range(self.ndim))
    kept = [one for one in range(self.ndim) if one not in dims]
    flat = (
        wide.permute([*kept, *dims]).reshape([*[self.shape[one] for one in kept], -1]) if self.ndim else wide.reshape(1)
    )
    while flat.shape[-1] > 1:
        half = flat.shape[-1] // 2
        folded = flat[..., :half] ^ flat[..., half : 2 * half]
        flat = torch.cat([folded, flat[..., 2 * half :]], -1)
    flat = flat.squeeze(-1) if flat.shape[-1] else flat.sum(-1)
    if keepdim:
        for one in sorted(dims):
            flat = flat.unsqueeze(one)
    return flat.view(torch.uint64)


def segment_reduce(
    data: Tensor, reduce: str, *, lengths: Tensor | None = None, indices: Tensor | None = None,
    offsets: Tensor | None = None, axis: int = 0, unsafe: bool = False, initial: Any = None,
) -> Tensor:  # fmt: skip
    """Reduces each segment of `axis`; segments are given by lengths [..., segments] or offsets [..., segments + 1].

    Accumulates in float32 for half precision; an empty segment is `initial`, or the reduction's neutral element (NaN for mean).
    """
    assert lengths is not None or offsets is not None
    if lengths is not None:
        ends = lengths.cumsum(-1)
        starts = ends - lengths
    else:
        assert offsets is not None
        starts, ends = offsets[..., :-1], offsets[..., 1:]
    place = torch.arange(data.shape[axis])
    member = (place >= starts.unsqueeze(-1)) & (place < ends.unsqueeze(-1))  # [..., segments, n]
    rest = data.ndim - axis - 1
    member = member.reshape([*member.shape, *[1] * rest])
    start = initial if initial is not None else {"sum": 0, "mean": 0, "prod": 1, "max": -inf, "min": inf}[reduce]
    neutral = {"sum": 0, "mean": 0, "prod": 1, "max": -inf, "min": inf}[reduce]
    wide = torch.float32 if data.dtype in (torch.bfloat16, torch.float16) else data.dtype
    masked = torch.where(member, data.unsqueeze(axis).to(wide), neutral)
    if reduce == "prod":
        return (masked.prod(axis + 1) * start).to(data.dtype)
    if reduce in ("max", "min"):
        best = masked.amax(axis + 1) if reduce == "max" else masked.amin(axis + 1)
        return (torch.clamp(best, min=start) if reduce == "max" else torch.clamp(best, max=start)).to(data.dtype)
    total = masked.sum(axis + 1) + start
    if reduce == "mean":
        count = member.to(wide).sum(axis + 1)
        empty = torch.full_like(total, float("nan")) if initial is None else total
        total = torch.where(count > 0, total / torch.clamp(count, min=1), empty)
    return total.to(data.dtype)
