"""`topk` by XLA's own top-k: which of equal elements, where NaN are, and that nothing is sorted."""

from __future__ import annotations

import pytest
import torch

import fxhlo

NAN = float("nan")


class Top(torch.nn.Module):
    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.topk(x, self.k, dim=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_of_equal_elements_the_first_comes_first_and_nan_are_the_greatest(dtype: torch.dtype) -> None:
    x = torch.tensor([[1.0, -0.0, 0.0, 1.0, NAN, -NAN], [-1.0, -1.0, 0.0, float("-inf"), 2.0, -0.0]], dtype=dtype)
    values, indices = (torch.from_dlpack(one) for one in fxhlo.lower(Top(6), (x,)).compile()(x))
    assert indices.tolist() == [[4, 5, 0, 3, 1, 2], [4, 2, 5, 0, 1, 3]]
    torch.testing.assert_close(values, x.gather(1, indices), equal_nan=True)


def test_xla_sorts_nothing() -> None:
    """Routers of experts take a few of many in every layer."""
    text = fxhlo.lower(Top(8), (torch.randn(16, 64),)).compile().loaded.text
    assert "TopK" in text and " sort(" not in text
