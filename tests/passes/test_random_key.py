"""What is drawn has the distribution of eager torch's draws, on both parts of complex numbers too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fxhlo
from fxhlo.runtime.core.errors import UnsupportedError

SIZE = 20_000


class Draws(torch.nn.Module):
    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        return (
            torch.rand_like(x),
            torch.randn_like(x),
            torch.empty_like(x).uniform_(1, 3),
            torch.empty_like(x).exponential_(2.0),
            torch.normal(x, 0.5),
            torch.bernoulli(x * 0 + 0.3),
            torch.randint_like(x, 2, 9),
            torch.rand_like(z),
            torch.randn_like(z),
            torch.empty_like(z).uniform_(1, 3),
            torch.empty_like(z).normal_(1, 2),
            torch.normal(z, x * 0.5),
        )


def test_means_and_deviations_are_those_of_torch() -> None:
    torch.manual_seed(0)
    x = torch.ones(SIZE)
    inputs = x, torch.complex(x, x * 2)
    ours = fxhlo.lower(Draws(), inputs).compile()(*inputs, torch.tensor([1, 2], dtype=torch.int32))
    for mine, theirs in zip(ours, Draws()(*inputs), strict=True):
        mine = torch.from_dlpack(mine)
        assert mine.dtype is theirs.dtype
        for one, other in zip(parts(mine), parts(theirs), strict=True):
            assert abs(one.mean() - other.mean()) < 0.06
            assert abs(one.std() - other.std()) < 0.06


def parts(values: Tensor) -> tuple[Tensor, ...]:
    return (values.real, values.imag) if values.is_complex() else (values,)


def test_a_range_beyond_what_is_drawn_is_refused() -> None:
    class Wide(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.randint_like(x, -(2**63), 2**63 - 1)

    with pytest.raises(UnsupportedError, match="62 bits are drawn"):
        fxhlo.lower(Wide(), (torch.zeros(3, dtype=torch.int64),))
