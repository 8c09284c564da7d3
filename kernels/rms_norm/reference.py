"""Reference of `fxhlo.rms_norm` in eager torch."""

from __future__ import annotations

import torch


def rms_norm(values: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """values [..., K], weight [K] -> [..., K] in the weight's dtype, to which normalized values are rounded before the multiplication."""
    exact = values.to(torch.float32)
    norm = exact * torch.rsqrt(exact.pow(2).mean(dim=-1, keepdim=True) + epsilon)
    return norm.to(weight.dtype) * weight


def fake(values: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return values.new_empty(values.shape, dtype=weight.dtype)
