"""Reference of `fxhlo.quantized_matmul` in eager torch."""

from __future__ import annotations

import torch
from torch import Tensor


def unpacked(weight: Tensor) -> Tensor:
    """Unpacks int8 [N, K / 2] to int8 [N, K] in [-8, 7]: low nibbles are the first K / 2 inputs, high nibbles the others.

    So each half of the inputs is contiguous, and no matmul needs every other column.
    """
    low = ((weight & 15) ^ 8) - 8
    return torch.cat([low, weight >> 4], dim=1)


def quantized_matmul(values: Tensor, weight: Tensor, scale: Tensor, *, bits: int) -> Tensor:
    """values [M, K] floating; weight int8, float8_e4m3fn or float8_e5m2 [N, K] (bits 8), or int8 [N, K / 2], two inputs per
    byte (bits 4); scale float32 [N] -> [M, N] in the values' dtype: values @ weight.T in float32, times scale."""
    wide = (unpacked(weight) if bits == 4 else weight).float()
    return ((values.float() @ wide.T) * scale).to(values.dtype)


def fake(values: Tensor, weight: Tensor, scale: Tensor, *, bits: int) -> Tensor:
    return values.new_empty((values.shape[0], weight.shape[0]))
