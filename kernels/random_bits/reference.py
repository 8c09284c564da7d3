"""Reference of `fxhlo.random_bits` in eager torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sample.reference import threefry


def random_bits(key: Tensor, like: Tensor, *, stream: int) -> Tensor:
    """int32 of the shape of `like`: the first word of Threefry-2x32-20 under `key` (int32 [2]) at the counter (the element's
    row-major index, stream). The values of `like` are not read."""
    place = torch.arange(like.numel(), dtype=torch.int32, device=key.device).reshape(like.shape)
    return threefry((key[0], key[1]), (place, torch.full_like(place, stream)))[0]


def fake(key: Tensor, like: Tensor, *, stream: int) -> Tensor:
    return torch.empty(like.shape, dtype=torch.int32, device=like.device)
