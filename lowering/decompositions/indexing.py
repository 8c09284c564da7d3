"""Decomposes indexing ops with a data-dependent result size, if the caller gives that size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def repeat_interleave(repeats: Tensor, *, output_size: int | None = None) -> Any:
    """repeats int32 or int64 [N] -> [output_size] in its dtype: index i repeats[i] times. Without output_size the op is not decomposed.

    Eager torch raises if repeats does not sum to output_size; here the last index fills the rest.
    """
    if output_size is None:
        return NotImplemented
    ends = repeats.cumsum(0)
    places = torch.arange(output_size, device=repeats.device)
    return torch.searchsorted(ends, places, right=True).clamp(max=repeats.shape[0] - 1).to(repeats.dtype)
