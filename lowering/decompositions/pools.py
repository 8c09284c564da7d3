"""Decomposes gradients of pooling, and fractional pooling, into ATen ops that have rules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def max_pool2d_backward(
    grad_output: Tensor, self: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], ceil_mode: bool, indices: Tensor,
) -> Tensor:  # fmt: skip
    """Adds each gradient to the element that was the maximum of its window."""
    lead = self.shape[:-2]
    flat = grad_output.new_zeros([*lead, self.shape[-2] * self.shape[-1]])
    return flat.scatter_add(-1, indices.flatten(-2), grad_output.flatten(-2)).reshape(self.shape)


def avg_pool2d_backward(
    grad_output: Tensor, self: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    ceil_mode: bool, count_include_pad: bool, divisor_override: int | None,
) -> Tensor:  # fmt: skip
    """Rᵀ g C, where the 0/1 matrices R and C give the rows and columns that each window covers."""
    wide = torch.float32 if self.dtype in (torch.bfloat16, torch.float16) else self.dtype
    grad, covers = grad_output.to(wide), []
    for index, dim in enumerate((-2, -1)):
        kernel = kernel_size[index % len(kernel_size)]
        step = stride[index % len(stride)] if len(stride) else kernel
        pad, size, count = padding[index % len(padding)], self.shape[dim], grad_output.shape[dim]
        start = torch.arange(count) * step - pad
        end = torch.clamp(start + kernel, max=size + pad)
        place = torch.arange(size)
        cover = ((place >= start.unsqueeze(1)) & (place < end.unsqueeze(1))).to(wide)
        counted = end - start if count_include_pad else cover.sum(1).to(torch.int64)
        if divisor_override is None:
            grad = grad / counted.to(wide).reshape([-1, 1] if dim == -2 else [-1])
        covers.append(cover)
    if divisor_override is not None:
        grad = grad / divisor_override
    return (covers[0].mT @ grad @ covers[1]).to(self.dtype)


def adaptive_avg_pool2d_backward(grad_output: Tensor, self: Tensor) -> Tensor:
    wide = torch.float32 if self.dtype in (torch.bfloat16, torch.float16) else self.dtype
    covers = []
    for dim in (-2, -1):
        size, count = self.shape[dim], grad_output.shape[dim]
        steps = torch.arange(count)
        start, end = steps * size // count, -((-(steps + 1) * size) // count)
        place = torch.arange(size)
        cover = ((place >= start.unsqueeze(1)) & (place < end.unsqueeze(1))).to(wide)
        covers.append(cover / cover.sum(1, keepdim=True))
    return (covers[0].mT @ grad_output.to(wide) @ covers[1]).to(self.dtype)


def fractional_max_pool(
    self: Tensor, kernel_size: Sequence[int], output_size: Sequence[int], random_samples: Tensor
) -> tuple[Tensor, Tensor]:
    """(maxima, int64 indices into the flattened spatial dimensions) over windows at pseudorandom starts (Graham 2014), as ATen places them.

    self [N, C, *sizes] or [C, *sizes]; random_samples [N, C, spatial dimensions] in 0 .. 1.
    """
    rank = len(output_size)
    batched = self if self.ndim == rank + 2 else self.unsqueeze(0)
    lead, sizes = batched.shape[:2], batched.shape[2:]
    samples = random_samples[: lead[0]]  # ATen accepts more rows than the batch has
    places: Tensor = torch.zeros([1] * (2 + 2 * rank), dtype=torch.int64)
    stride = 1
    for dim in reversed(range(rank)):
        # the samples are ordered from the last dimension to the first in 2-d, and from the first in 3-d
        sample = samples[..., (rank - 1 - dim) if rank == 2 else dim]
        start = _fractional_starts(sample, sizes[dim], output_size[dim], kernel_size[dim])
        window = start.unsqueeze(-1) + torch.arange(kernel_size[dim])
        shape = [*lead] + [1] * (2 * rank)
        shape[2 + dim], shape[2 + rank + dim] = output_size[dim], kernel_size[dim]
        places = places + window.reshape(shape) * stride
        stride = stride * sizes[dim]
    flat_places = places.flatten(2 + rank).flatten(2, 1 + rank)  # [N, C, outputs, window]
    flat = batched.flatten(2).unsqueeze(2).expand(*lead, flat_places.shape[2], -1)
    values, chosen = torch.gather(flat, 3, flat_places).max(-1)
    indices = torch.gather(flat_places, 3, chosen.unsqueeze(-1)).squeeze(-1)
    shape = [*self.shape[: self.ndim - rank], *output_size]
    return values.reshape(shape), indices.reshape(shape)


def _fractional_starts(sample: Tensor, size: int, count: int, kernel: int) -> Tensor:
    """int64 [..., count]: where the windows of one dimension start; the last window ends at the last element."""
    last = torch.full((*sample.shape, 1), size - kernel, dtype=torch.int64)
    if count == 1:
        return last
    alpha = (size - kernel) / (count - 1)
    steps = torch.arange(count - 1, dtype=sample.dtype)
    inner = ((steps + sample.unsqueeze(-1)) * alpha).to(torch.int64) - (sample.unsqueeze(-1) * alpha).to(torch.int64)
    return torch.cat([inner, last], -1)
