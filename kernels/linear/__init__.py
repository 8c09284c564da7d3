"""`fxhlo.linear`: a product with a weight as torch lays it out, [out, in], accumulated in float32.

On the CPU a kernel of ours reads the weight as it lies, once, and gives every row the same bits in any batch. Elsewhere it is
the reference's product, whose float32 asks for full precision (lowering/build.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..spec import FLOATING, Implementation, Kernel
from . import cpu

if TYPE_CHECKING:
    import torch


def linear(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """values [M, K], weight [N, K], bias [N] or None, all of one dtype -> [M, N]."""
    product = values @ weight.T
    return product if bias is None else product + bias


def fake(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return values.new_empty((values.shape[0], weight.shape[0]))


KERNEL = Kernel(
    name="linear",
    version=1,
    schema="linear(Tensor values, Tensor weight, Tensor? bias) -> Tensor",
    reference=linear,
    fake=fake,
    dtypes=dict.fromkeys(("values", "weight", "bias"), FLOATING),
    implementations=(Implementation("cpu", "native", cpu.linear, cpu.supports),),
    source="aten::linear",
)
