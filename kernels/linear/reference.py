"""Reference of `fxhlo.linear` in eager torch."""

from __future__ import annotations

import torch


def linear(
    values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, used: torch.Tensor | None = None
) -> torch.Tensor:
    """values [M, K], weight [N, K], bias [N] or None, all of one dtype -> [M, N]. used: int32 [1], or None for all rows."""
    product = values @ weight.T
    return product if bias is None else product + bias


def fake(
    values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, used: torch.Tensor | None = None
) -> torch.Tensor:
    return values.new_empty((values.shape[0], weight.shape[0]))
