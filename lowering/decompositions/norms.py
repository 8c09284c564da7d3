"""Decomposes batch norm in training, with the statistics that ATen saves."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor

aten = torch.ops.aten


def _normalized(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, statistics: Sequence[Tensor | None], eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(result, saved mean, saved 1 / standard deviation, variance in float32 or wider), each statistic [C].

    ATen's CPU kernel normalizes with the saved statistics, which are rounded to a 16-bit input's dtype unless a parameter is float32.
    """
    wide = torch.float32 if input.dtype in (torch.bfloat16, torch.float16) else input.dtype
    given = [one for one in (weight, bias, *statistics) if one is not None]
    saved = wide if any(one.dtype is torch.float32 for one in given) else input.dtype
    dims, values = [dim for dim in range(input.ndim) if dim != 1], input.to(wide)
    mean, variance = values.mean(dims), values.var(dims, unbiased=False)
    means, scales = mean.to(saved), (1 / torch.sqrt(variance + eps)).to(saved)
    alpha = scales.to(wide) if weight is None else scales.to(wide) * weight.to(wide)
    beta = -means.to(wide) * alpha if bias is None else bias.to(wide) - means.to(wide) * alpha
    shape = [1, -1, *[1] * (input.ndim - 2)]
    return (values * alpha.reshape(shape) + beta.reshape(shape)).to(input.dtype), means, scales, variance


def _moved(running: Tensor, new: Tensor, momentum: float) -> Tensor:
    """The updated running statistic, in its dtype."""
    return (momentum * new.to(torch.promote_types(new.dtype, torch.float32)) + (1 - momentum) * running).to(
        running.dtype
    )


def batch_norm_functional(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, training: bool,
    momentum: float, eps: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """(result, saved mean, saved 1 / standard deviation, new running mean, new running variance)."""
    if not training:
        result = aten._native_batch_norm_legit_no_training(
            input, weight, bias, running_mean, running_var, momentum, eps
        )[0]
        return result, input.new_empty([0]), input.new_empty([0]), running_mean.clone(), running_var.clone()
    result, mean, scale, variance = _normalized(input, weight, bias, (running_mean, running_var), eps)
    count = input.numel() // input.shape[1]
    unbiased = variance * (count / (count - 1) if count > 1 else inf)
    return result, mean, scale, _moved(running_mean, mean, momentum), _moved(running_var, unbiased, momentum)


def batch_norm_no_stats(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool, momentum: float, eps: float
) -> tuple[Tensor, ...]:
    return _normalized(input, weight, bias, (), eps)[:3]


def batch_norm_with_update_functional(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor,
    momentum: float, eps: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    result, mean, scale, *updated = batch_norm_functional(
        input, weight, bias, running_mean, running_var, True, momentum, eps
    )
    return result, mean, scale, input.new_empty([0], dtype=torch.uint8), *updated
