"""`fxhlo.silu_and_mul`: the gated activation between a model's two big products, silu(gate) * up over halves of a row.

XLA's CPU backend takes a logistic function of bfloat16 apart into so many conversions that it costs a tenth of a prompt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..spec import FLOATING, Implementation, Kernel
from . import cpu

if TYPE_CHECKING:
    import torch


def silu_and_mul(values: torch.Tensor) -> torch.Tensor:
    """values [M, 2 N] -> [M, N]; silu is rounded to the dtype before it is multiplied, as torch's two ops do."""
    import torch

    size = values.shape[1] // 2
    return torch.nn.functional.silu(values[:, :size]) * values[:, size:]


def fake(values: torch.Tensor) -> torch.Tensor:
    return values.new_empty((values.shape[0], values.shape[1] // 2))


KERNEL = Kernel(
    name="silu_and_mul",
    version=1,
    schema="silu_and_mul(Tensor values) -> Tensor",
    reference=silu_and_mul,
    fake=fake,
    dtypes={"values": FLOATING},
    implementations=(Implementation("cpu", "native", cpu.silu_and_mul, cpu.supports),),
    source="vllm/model_executor/layers/activation.py SiluAndMul",
)
