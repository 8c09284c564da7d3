"""Decomposes pairwise distances, trilinear products and the pseudoinverse into ATen ops that have rules."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor


def cdist_forward(x1: Tensor, x2: Tensor, p: float, compute_mode: int | None) -> Tensor:
    return _distance((x1.unsqueeze(-2) - x2.unsqueeze(-3)).abs(), p)


def pdist_forward(self: Tensor, p: float = 2.0) -> Tensor:
    first, second = _pairs(self.shape[0], self.device)
    return _distance((self[first] - self[second]).abs(), p)


def _pairs(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """All pairs i < j < `count` in order, as two int64 tensors. torch.triu_indices does not take a symbolic `count`."""
    if isinstance(count, int):
        first, second = torch.triu_indices(count, count, 1, device=device).unbind(0)
        return first, second
    place = torch.arange(count * (count - 1) // 2, device=device)
    whole = torch.full((), 1, dtype=torch.int64, device=device) * (
        2 * count - 1
    )  # i * (whole - i) / 2 pairs precede row i
    root = (whole * whole - 8 * place).to(torch.float64).sqrt()
    first = ((whole - root) / 2).to(torch.int64)
    first = torch.where(first * (whole - first) // 2 > place, first - 1, first)  # corrects rounding of the root
    first = torch.where((first + 1) * (whole - first - 1) // 2 <= place, first + 1, first)
    return first, place - first * (whole - first) // 2 + first + 1


def _distance(difference: Tensor, p: float) -> Tensor:
    """p-norm over the last dimension of absolute differences."""
    if difference.shape[-1] == 0:
        return difference.sum(-1)
    if p == 0:
        return (difference != 0).to(difference.dtype).sum(-1)
    if p == 1:
        return difference.sum(-1)
    if p == 2:
        return (difference * difference).sum(-1).sqrt()
    if p == inf:
        return difference.amax(-1)
    return difference.pow(p).sum(-1).pow(1 / p)


def trilinear(
    i1: Tensor, i2: Tensor, i3: Tensor, expand1: Sequence[int], expand2: Sequence[int], expand3: Sequence[int],
    sumdim: Sequence[int], unroll_dim: int = 1,
) -> Tensor:  # fmt: skip
    """Product of three tensors, unsqueezed at their `expand` dimensions and broadcast, summed over `sumdim`; in float32 for half precision."""
    for dim in expand1:
        i1 = i1.unsqueeze(dim)
    for dim in expand2:
        i2 = i2.unsqueeze(dim)
    for dim in expand3:
        i3 = i3.unsqueeze(dim)
    wide = torch.float32 if i1.dtype in (torch.bfloat16, torch.float16) else i1.dtype
    product = i1.to(wide) * i2.to(wide) * i3.to(wide)
    return (product.sum(list(sumdim)) if len(sumdim) else product).to(i1.dtype)


def pinv(self: Tensor, *, atol: Tensor | None = None, rtol: Tensor | None = None, hermitian: bool = False) -> Tensor:
    """Pseudoinverse [..., n, m] of [..., m, n]; singular values up to max(atol, rtol * largest) are treated as zero."""
    if self.numel() == 0:
        return self.new_zeros([*self.shape[:-2], self.shape[-1], self.shape[-2]])
    m, n = self.shape[-2:]
    eps = torch.finfo(self.dtype).eps * max(m, n)
    if hermitian:
        values, vectors = torch.linalg.eigh(self)
        left, sizes, right, signs = vectors, values.abs(), vectors.mT, values.sign()
    else:
        left, sizes, right = torch.linalg.svd(self, full_matrices=False)
        signs = torch.ones_like(sizes)
    absolute = torch.zeros_like(sizes[..., :1]) if atol is None else atol.unsqueeze(-1).to(sizes.dtype)
    default = torch.full_like(absolute, eps)
    relative = default if rtol is None and atol is None else torch.zeros_like(absolute)
    if rtol is None and atol is not None:
        relative = torch.where(absolute > 0, 0.0, default)
    elif rtol is not None:
        relative = rtol.unsqueeze(-1).to(sizes.dtype)
    kept = sizes > torch.maximum(absolute, relative * sizes.amax(-1, keepdim=True))
    inverse = torch.where(kept, signs / torch.where(kept, sizes, 1.0), 0.0)
    return (right.mT * inverse.unsqueeze(-2)) @ left.mT
