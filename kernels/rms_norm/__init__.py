"""`fxhlo.rms_norm`: root-mean-square normalization of the last dimension (https://arxiv.org/abs/1910.07467).

What vLLM's IR op of this name is made of, without the residual's sum. One kernel sums a row in one order in every program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..spec import FLOATING, Implementation, Kernel
from . import cpu

if TYPE_CHECKING:
    import torch


def rms_norm(values: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """values [..., K], weight [K] -> [..., K] of the weight's dtype, to which the norm is rounded before the product."""
    import torch

    exact = values.to(torch.float32)
    norm = exact * torch.rsqrt(exact.pow(2).mean(dim=-1, keepdim=True) + epsilon)
    return norm.to(weight.dtype) * weight


def fake(values: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return values.new_empty(values.shape, dtype=weight.dtype)


KERNEL = Kernel(
    name="rms_norm",
    version=1,
    schema="rms_norm(Tensor values, Tensor weight, float epsilon) -> Tensor",
    reference=rms_norm,
    fake=fake,
    dtypes={"values": FLOATING, "weight": FLOATING},
    implementations=(Implementation("cpu", "native", cpu.rms_norm, cpu.supports),),
    source="vllm/ir/ops/layernorm.py rms_norm",
)
