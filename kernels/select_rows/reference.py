"""Reference of `fxhlo.select_rows` in eager torch."""

from __future__ import annotations

import torch


def select_rows(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """values [T, ...], rows int32 [R] in [0, T) -> [R, ...]."""
    return values.index_select(0, rows)


def fake(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return values.new_empty((rows.shape[0], *values.shape[1:]))
