"""Reference of `fxhlo.causal_conv1d` in eager torch, and a step of one request whose state begins at zero."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ragged_causal_conv1d.reference import ragged_causal_conv1d


def alone(rows: Tensor, *shape: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """State float32 [1, *shape], state_slots, seq_lens and query_start_loc of one request that has all rows [T, ...]."""
    slots = torch.zeros(1, dtype=torch.int32, device=rows.device)
    bounds = torch.arange(2, dtype=torch.int32, device=rows.device) * rows.shape[0]
    return torch.zeros(1, *shape, device=rows.device), slots, bounds[1:], bounds


def causal_conv1d(values: Tensor, weight: Tensor, bias: Tensor | None, *, layer: str, silu: bool) -> Tensor:
    """values [T, C], weight [C, K], bias [C] or None -> [T, C]: `ragged_causal_conv1d` of one sequence, zero before its first row."""
    step = alone(values, weight.shape[1] - 1, weight.shape[0])
    return ragged_causal_conv1d(values, weight, bias, *step, silu=silu)[0]


def fake(values: Tensor, *_: object, **__: object) -> Tensor:
    return values.new_empty(values.shape)
