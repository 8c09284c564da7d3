"""Reference of `fxhlo.silu_and_mul` in eager torch."""

from __future__ import annotations

import torch


def silu_and_mul(values: torch.Tensor) -> torch.Tensor:
    """values [M, 2 N] -> [M, N]; silu is rounded to the dtype before the multiplication, as in torch's two ops."""
    size = values.shape[1] // 2
    return torch.nn.functional.silu(values[:, :size]) * values[:, size:]


def fake(values: torch.Tensor) -> torch.Tensor:
    return values.new_empty((values.shape[0], values.shape[1] // 2))
