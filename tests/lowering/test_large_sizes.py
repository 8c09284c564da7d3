"""Functions on operands above the sizes at which XLA's CPU backend changes its way: 4,096 elements and 32,768 rows, with NaN and infinities.

XLA takes fused reductions and products above such sizes to libraries of its own, some of which lose NaN: what runs here is compiled
with the options of the target (runtime/core/targets.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from differential import Call, check
from torch.nn import functional as F

import fxhlo

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SIZE, ROWS = 65, 32_769
"""Elements of a side: 4,225 in all; and rows."""


def spoiled(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Random numbers with a NaN in the first row, infinities in the second and third, and only NaN in the last row."""
    x = torch.rand(shape, dtype=torch.float64)
    x[0, 0], x[1, 1], x[2, 2], x[-1] = float("nan"), float("inf"), float("-inf"), float("nan")
    return x.to(dtype)


def reductions(x: torch.Tensor) -> list[torch.Tensor]:
    return [
        *(getattr(x, name)() for name in ("amax", "amin", "max", "min", "sum", "mean", "prod", "argmax", "argmin")),
        *(getattr(x, name)(dim) for name in ("amax", "amin", "sum", "mean", "argmax", "argmin") for dim in (0, 1)),
        *(part for name in ("max", "min") for dim in (0, 1) for part in getattr(x, name)(dim)),
        *torch.aminmax(x),
        *torch.aminmax(x, dim=0),
        x / x.abs().amax(),
        x.isnan().any(0),
        x.isnan().all(1),
        x.var(0),
        x.std(1),
        x.pow(2).sum(0),
    ]


def norms(x: torch.Tensor) -> list[torch.Tensor]:
    of = torch.linalg.vector_norm
    orders = [of(x, order, dim) for order in (0, 1, 2, 3, float("inf"), float("-inf")) for dim in (0, 1)]
    return [*orders, F.normalize(x), F.layer_norm(x, x.shape[1:]), F.rms_norm(x, x.shape[1:]), F.group_norm(x, 5)]


def pools(x: torch.Tensor) -> list[torch.Tensor]:
    planes = x[None, None]
    return [
        F.max_pool1d(x, 3),
        F.max_pool2d(planes, 3, 2, 1),
        F.max_pool3d(planes[None], (1, 3, 3)),
        F.avg_pool2d(planes, 3, 2),
        F.adaptive_max_pool2d(planes, 3),
        F.adaptive_avg_pool2d(planes, 3),
    ]


def sorts(x: torch.Tensor) -> list[torch.Tensor]:
    return [
        x.sort(1).values,
        x.flatten().sort().values,
        x.topk(5, 1).values,
        x.kthvalue(3, 1).values,
        x.median(1).values,
    ]


def scans(x: torch.Tensor) -> list[torch.Tensor]:
    half = x / 64
    return [half.cumsum(1), x.cumprod(1), x.cummax(0).values, x.cummin(0).values, half.logcumsumexp(1)]


def softmaxes(x: torch.Tensor) -> list[torch.Tensor]:
    return [x.softmax(0), x.softmax(1), x.log_softmax(0), x.log_softmax(1), x.logsumexp(0), x.logsumexp(1)]


def products(x: torch.Tensor) -> list[torch.Tensor]:
    clean = x.nan_to_num(0, 1, -1)
    return [x @ clean, clean @ clean, (clean @ clean.t()).amax(0), clean @ clean[0], torch.addmm(x, clean, clean)]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("function", [reductions, norms, pools, sorts, scans, softmaxes, products])
def test_nan_and_infinities_above_4096_elements(
    function: Callable[[torch.Tensor], list[torch.Tensor]], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-9, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    check(function, spoiled(SIZE, SIZE, dtype=dtype), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "rows"), [(torch.float32, ROWS), (torch.float32, 40_000), (torch.float64, 16_385)])
def test_columns_of_many_rows(rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    w, p = torch.rand(3, 3, dtype=dtype), torch.rand(rows, 3, dtype=dtype)

    def columns(w: torch.Tensor, p: torch.Tensor) -> list[torch.Tensor]:
        product = w @ p.t()
        rowwise = torch.vmap(lambda row: w @ row)(p)
        return [
            product.amax(0),
            product.amin(0),
            product.sum(0),
            p.mean(0),
            p.pow(2).sum(0),
            p.amax(0),
            p.prod(1),
            rowwise,
        ]

    check(columns, w, p, rtol=1e-4, atol=1e-5)


def test_sum_of_a_product_over_an_inner_dimension() -> None:
    """XLA's YNN fusion of it crashes the process."""
    a, b = torch.rand(3, 1, 2, 2, 8, 8, 8), torch.rand(3, 1, 2, 2, 8, 8, 8)
    check(lambda a, b: (a * b).sum(3), a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_floats_are_rounded_after_every_op(dtype: torch.dtype) -> None:
    """XLA may keep an intermediate result in float32 (`xla_allow_excess_precision`); torch rounds each."""
    torch.manual_seed(0)
    x, y = torch.randn(SIZE, SIZE, dtype=dtype), torch.randn(SIZE, SIZE)
    check(lambda x, y: ((x + x) * x - x, x.exp() * x, y.to(dtype).float() * 3), x, y, rtol=0, atol=0)


def test_a_loaded_bundle_keeps_nan(tmp_path: Path) -> None:
    x = spoiled(SIZE, SIZE, dtype=torch.float32)
    fxhlo.lower(Call(lambda x: x.amax()), (x,)).save(tmp_path / "bundle")
    (largest,) = fxhlo.load(tmp_path / "bundle")["main"](x)
    assert torch.from_dlpack(largest).isnan()
