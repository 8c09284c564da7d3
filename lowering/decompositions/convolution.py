"""Decomposes the gradients of a convolution into convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def convolution_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, bias_sizes: Sequence[int] | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of input, weight and bias, in their shapes; None for those that output_mask leaves out."""
    rank = input.ndim - 2
    stride, padding, dilation, output_padding = (
        list(amounts) * (rank if len(amounts) == 1 else 1) for amounts in (stride, padding, dilation, output_padding)
    )
    to_input = to_weight = to_bias = None
    if output_mask[0] and transposed:
        to_input = aten.convolution(grad_output, weight, None, stride, padding, dilation, False, [0] * rank, groups)
    elif output_mask[0]:
        reach = [
            (size - 1) * step - 2 * pad + dilate * (kernel - 1) + 1
            for size, step, pad, dilate, kernel in zip(
                grad_output.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True
            )
        ]
        extra = [size - made for size, made in zip(input.shape[2:], reach, strict=True)]
        to_input = aten.convolution(grad_output, weight, None, stride, padding, dilation, True, extra, groups)
    if output_mask[1]:
        outer, inner = (grad_output, input) if transposed else (input, grad_output)
        parts = [
            _kernel_gradient(a, b, weight.shape[2:], stride, padding, dilation)
            for a, b in zip(outer.chunk(groups, 1), inner.chunk(groups, 1), strict=True)
        ]
        to_weight = torch.cat(parts, 0)
    if output_mask[2]:
        to_bias = grad_output.sum([0, *range(2, grad_output.ndim)])
    return to_input, to_weight, to_bias


def _kernel_gradient(
    outer: Tensor, inner: Tensor, kernel: Sequence[int], stride: Any, padding: Any, dilation: Any
) -> Tensor:
    """[inner channels, outer channels, *kernel]: batch and channels are swapped, because the gradient sums over the batch."""
    rank = outer.ndim - 2
    made = aten.convolution(
        outer.transpose(0, 1), inner.transpose(0, 1), None, dilation, padding, stride, False, [0] * rank, 1
    )
    for dim, size in enumerate(kernel):
        made = made.narrow(dim + 2, 0, size)
    return made.transpose(0, 1)
