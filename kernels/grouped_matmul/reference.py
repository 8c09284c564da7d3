"""Reference of `fxhlo.grouped_matmul` in eager torch."""

from __future__ import annotations

import torch
from torch import Tensor


def grouped_matmul(values: Tensor, weights: Tensor, sizes: Tensor) -> Tensor:
    """values [M, K], weights [G, N, K], both of one floating dtype; sizes int32 [G], their sum at most M -> [M, N].

    The first sizes[0] rows belong to group 0, the next sizes[1] to group 1, and so on: row m of the result is
    values[m] @ weights[g].T, accumulated in float32. Rows past the last group are zero.
    """
    ends = torch.cumsum(sizes, 0)
    rows = torch.arange(values.shape[0], dtype=sizes.dtype, device=values.device)
    group = (rows.unsqueeze(1) >= ends.unsqueeze(0)).sum(dim=1, keepdim=True)
    result = values.new_zeros((values.shape[0], weights.shape[1]), dtype=torch.float32)
    for index in range(weights.shape[0]):
        result = torch.where(group == index, values.float() @ weights[index].float().T, result)
    return result.to(values.dtype)


def fake(values: Tensor, weights: Tensor, sizes: Tensor) -> Tensor:
    return values.new_empty((values.shape[0], weights.shape[1]))
