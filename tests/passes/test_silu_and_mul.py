"""The gated activation: what becomes one kernel, what does not, and that the numbers stay the same."""

from __future__ import annotations

import pytest
import torch
from torch import fx

import fxhlo
from fxhlo.kernels.rms_norm.reference import rms_norm
from fxhlo.kernels.silu_and_mul.reference import silu_and_mul
from fxhlo.lowering.capture.exporting import capture
from fxhlo.passes.fx.silu_and_mul import SiluAndMul


class Gated(torch.nn.Module):
    def __init__(self, first: int = 0, second: int = 8) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(x[:, self.first : self.first + 8]) * x[:, self.second : self.second + 8]


def targets(graph: fx.Graph) -> list[object]:
    return [node.target for node in graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize(("module", "fused"), [(Gated(), 1), (Gated(8, 0), 0), (Gated(0, 4), 0)])
def test_halves_of_one_matrix_become_one_kernel(module: Gated, fused: int) -> None:
    x = torch.randn(3, 16)
    before = capture(module, (x,))
    after = SiluAndMul()(before)
    assert targets(after.graph).count(torch.ops.fxhlo.silu_and_mul.default) == fused
    assert torch.equal(after.module(x)[0], module(x))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("size", [3, 16, 37])
def test_native_kernels_equal_their_references(dtype: torch.dtype, tolerance: float, size: int) -> None:
    class All(torch.nn.Module):
        def forward(self, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
            norm = torch.ops.fxhlo.rms_norm
            return torch.ops.fxhlo.silu_and_mul(x), norm(x, weight, 1e-5), norm(x.float(), weight, 1e-5)

    x, weight = torch.randn(5, 2 * size, dtype=dtype) * 4, torch.randn(2 * size, dtype=dtype)
    found = fxhlo.lower(All(), (x, weight)).compile()(x, weight)
    wanted = (silu_and_mul(x), rms_norm(x, weight, 1e-5), rms_norm(x.float(), weight, 1e-5))
    for result, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(torch.from_dlpack(result), right, rtol=tolerance, atol=tolerance)
