"""Rewrites that decline say why, with the user's line, and leave the graph as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fxhlo.lowering.capture.callable import Input, capture_callable
from fxhlo.lowering.capture.exporting import capture
from fxhlo.passes.base import Pass
from fxhlo.passes.fx.expand import Expand, Preferred
from fxhlo.passes.fx.linear import Linear
from fxhlo.passes.fx.paged_attention import PagedAttention
from fxhlo.passes.fx.select_rows import SelectRows
from fxhlo.passes.fx.silu_and_mul import SiluAndMul
from fxhlo.passes.pipeline import run, verify
from fxhlo.passes.program import Program

ops = torch.ops.fxhlo


class Model(torch.nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(6, 6))
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, self.weight)


def gated(columns: int, gate: slice, up: slice) -> Callable[..., torch.Tensor]:
    return lambda x, weight: torch.nn.functional.silu(x[:, gate]) * x[:, up] if columns else x


DECLINED: list[tuple[Pass, Callable[..., torch.Tensor], str]] = [
    (SiluAndMul(), lambda x, w: torch.nn.functional.silu(x) * w, "gate and up are not the two halves of one matrix's columns"),
    (SiluAndMul(), gated(6, slice(3, 6), slice(0, 3)), "the gate is the second half of the matrix, and the kernel takes the first"),
    (SiluAndMul(), gated(6, slice(0, 3), slice(0, 3)), "gate and up are the same half of the matrix"),
    (Linear(), lambda x, w: x @ w, "the weight lies in memory as [inputs, outputs], and is multiplied as it is"),
    (Linear(), lambda x, w: x @ (w * 2).T, "the transposed operand is computed, not a weight"),
    (Linear(), lambda x, w: torch.addmm(w[0], x, w.T, beta=2), "addmm is called with alpha or beta"),
    (
        PagedAttention(),
        lambda x, w: ops.attention(
            x.view(6, 2, 3), x.view(6, 2, 3), x.view(6, 2, 3), None, None,
            layer="encoder", scale=1.0, sliding_window=0, soft_cap=0.0, causal=False,
        ),
        "attention that is not causal sees all of its tokens in one call, and keeps none",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("step", "function", "reason"), DECLINED, ids=lambda one: getattr(one, "name", None))
def test_why_it_declined(step: Pass, function: Callable[..., torch.Tensor], reason: str) -> None:
    program = capture(Model(function), (torch.randn(6, 6),))
    after = run([step], program, [verify])
    (note,) = after.notes
    assert (note.rewrite, note.reason, note.count) == (step.name, reason, 1)
    assert note.where is not None and "test_notes.py:" in note.where
    assert [node.target for node in after.graph.nodes] == [node.target for node in program.graph.nodes]


def test_what_is_rewritten_and_what_is_none_of_its_business_has_no_note() -> None:
    def function(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        hidden = x @ weight.T
        halves = hidden[:, 3:] * torch.nn.functional.silu(hidden[:, :3])
        return halves @ halves.T.contiguous().reshape(3, 6)  # a product of two values, without a weight

    model, x = Model(function), torch.randn(6, 6)
    program = capture(model, (x,))
    after = run([SiluAndMul(), Linear()], program, [verify])
    targets = [node.target for node in after.graph.nodes]
    assert ops.silu_and_mul.default in targets and ops.linear.default in targets
    assert after.notes == ()
    with torch.no_grad():
        torch.testing.assert_close(after.module(*after.tensors.values(), x)[0], model(x))


def selected(function: Callable[[torch.Tensor], torch.Tensor]) -> Program:
    inputs = [Input("values", ("tokens", 6), torch.float32), Input("rows", ("requests",), torch.int32)]
    model = torch.nn.Module()
    step = lambda values, rows: ops.select_rows(function(values), rows)  # noqa: E731
    return capture_callable(step, model, inputs, {"tokens": (1, 64), "requests": (1, 8)}, results=("out",))


def test_where_a_selection_of_rows_stops() -> None:
    assert run([SelectRows()], selected(lambda values: values.relu() * 2)).notes == ()
    (note,) = run([SelectRows()], selected(lambda values: values.cumsum(0).relu())).notes
    assert note.reason == "aten.cumsum.default is not known to compute each row alike"


def test_an_op_with_a_preferred_form() -> None:
    relu, gelu = torch.ops.aten.relu.default, torch.ops.aten.gelu.default
    guard = lambda x: "it is narrow" if x.shape[1] < 8 else None  # noqa: E731
    step = Expand({relu: Preferred(lambda x: torch.clamp_min(x, 0), guard, lambda x: torch.maximum(x, x * 0))})
    for columns, notes in ((6, [("expand", "it is narrow", 2)]), (8, [])):
        program = capture(
            torch.nn.Sequential(torch.nn.ReLU(), torch.nn.GELU(), torch.nn.ReLU()), (torch.randn(3, columns),)
        )
        after = run([step], program, [verify])
        targets = [node.target for node in after.graph.nodes]
        assert relu not in targets and gelu in targets
        assert (torch.ops.aten.maximum.default in targets) == bool(notes)
        assert [(note.rewrite, note.reason, note.count) for note in after.notes] == notes
