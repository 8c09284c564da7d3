"""SelectRows and Canonicalize over the ops of routers: the program computes the same, and the selection is where it should be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fxhlo.kernels.catalog import register_torch_ops
from fxhlo.lowering.capture.callable import Input, capture_callable
from fxhlo.passes.fx.canonicalize import Canonicalize
from fxhlo.passes.fx.select_rows import SelectRows
from fxhlo.passes.pipeline import run, verify

register_torch_ops()
ops = torch.ops.fxhlo
W13, W2 = torch.randn(6, 8, 6), torch.randn(6, 6, 4)
SILU = {"activation": "silu", "limit": 0.0, "alpha": 1.0, "beta": 0.0, "weight_on_input": False}


def experts(x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    return x + ops.moe(x, W13, W2, weights, ids.int(), **SILU)


def softmax_router(x: Tensor) -> Tensor:
    weights, ids = torch.topk(torch.softmax(x, -1), 2, dim=-1)
    return experts(x, weights / weights.sum(-1, keepdim=True), ids)


def gathering_router(x: Tensor) -> Tensor:
    scores = torch.sigmoid(x)
    ids = torch.topk(scores + 0.1 * scores.cumsum(-1), 2, dim=-1).indices
    return experts(x, scores.gather(-1, ids), ids)


def grouped_router(x: Tensor) -> Tensor:
    best = torch.topk(x.view(x.shape[0], 3, -1).max(dim=-1).values, k=2, dim=-1).indices
    mask = (
        torch.zeros(x.shape[0], 3).scatter_(1, best, 1).unsqueeze(-1).expand(x.shape[0], 3, 2).reshape(x.shape[0], -1)
    )
    weights, ids = torch.topk(x.masked_fill(~mask.bool(), float("-inf")), 2, dim=-1)
    return experts(x, weights, ids)


def maximum_router(x: Tensor) -> Tensor:
    weights, ids = x.max(dim=-1, keepdim=True)
    return experts(x, weights.sigmoid(), ids)


def chosen_over_rows(x: Tensor) -> Tensor:
    """Must stay: the best rows, not each row's best."""
    return x * torch.topk(x, 1, dim=0).values


def summed_over_rows(x: Tensor) -> Tensor:
    return x + x.sum(0, keepdim=True)


@pytest.mark.parametrize("router", [softmax_router, gathering_router, grouped_router, maximum_router])
def test_a_selection_moves_above_a_router_and_its_experts(router: Callable[[Tensor], Tensor]) -> None:
    program, values, rows = captured(router)
    after = run([Canonicalize(), SelectRows()], program, [verify])
    torch.testing.assert_close(after.module(values, rows)[0], router(values)[rows.long()])
    (moe,) = (node for node in after.graph.nodes if node.target is ops.moe.default)
    assert moe.meta["val"].shape[0] == after.graph.output_node().args[0][0].meta["val"].shape[0]
    chosen = [
        node for node in after.graph.nodes if node.target in (torch.ops.aten.topk.default, torch.ops.aten.max.dim)
    ]
    assert all(node.meta["val"][0].shape[0] == moe.meta["val"].shape[0] for node in chosen)


@pytest.mark.parametrize("function", [chosen_over_rows, summed_over_rows])
def test_a_selection_stays_below_what_mixes_rows(function: Callable[[Tensor], Tensor]) -> None:
    program, values, rows = captured(function)
    after = run([Canonicalize(), SelectRows()], program, [verify])
    torch.testing.assert_close(after.module(values, rows)[0], function(values)[rows.long()])


def captured(function: Callable[[Tensor], Tensor]):
    inputs = [Input("values", ("tokens", 6), torch.float32), Input("rows", ("requests",), torch.int32)]
    step = lambda values, rows: ops.select_rows(function(values), rows)  # noqa: E731
    ranges = {"tokens": (2, 64), "requests": (1, 8)}
    torch.manual_seed(0)
    program = capture_callable(step, torch.nn.Module(), inputs, ranges, results=("out",))
    return program, torch.randn(9, 6), torch.tensor([8, 0, 5], dtype=torch.int32)
