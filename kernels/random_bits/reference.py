"""`fxhlo.random_bits` in eager torch: what the composite means."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sample.reference import threefry


def random_bits(key: Tensor, like: Tensor, *, stream: int) -> Tensor:
    """int32 of the shape of `like`: the first word of Threefry-2x32-20 under `key` (int32 [2]) at the counter (the element's
    place in row-major order, stream). The values of `like` do not matter."""
    place = torch.arange(like.numel(), dtype=torch.int32, device=key.device).reshape(like.shape)
    return threefry((key[0], key[1]), (place, torch.full_like(place, stream)))[0]


def fake(key: Tensor, like: Tensor, *, stream: int) -> Tensor:
    return torch.empty(like.shape, dtype=torch.int32, device=like.device)
