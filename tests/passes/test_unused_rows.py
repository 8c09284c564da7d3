"""Rows that belong to no request choose no expert and are not multiplied; the others compute what they did."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fxhlo.kernels.catalog import register_torch_ops
from fxhlo.lowering.capture.callable import Input, capture_callable
from fxhlo.passes.fx.canonicalize import Canonicalize
from fxhlo.passes.fx.linear import Linear
from fxhlo.passes.fx.select_rows import SelectRows
from fxhlo.passes.fx.unused_rows import IDS, UnusedRows
from fxhlo.passes.fx.varlen_attention import VarlenAttention
from fxhlo.passes.pipeline import run, verify
from fxhlo.passes.program import Program

HIDDEN, INNER, EXPERTS, TOP = 16, 8, 6, 2
SILU = {"activation": "silu", "limit": 0.0, "alpha": 1.0, "beta": 0.0, "weight_on_input": False}


class Mixture(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = torch.nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.w13 = torch.nn.Parameter(torch.randn(EXPERTS, 2 * INNER, HIDDEN))
        self.w2 = torch.nn.Parameter(torch.randn(EXPERTS, HIDDEN, INNER))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        weights, ids = torch.topk(torch.softmax(self.gate(rows), -1), TOP)
        return torch.ops.fxhlo.moe(rows, self.w13, self.w2, weights, ids.int(), None, None, **SILU)


class Sum(torch.nn.Module):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.cumsum(0)


def captured() -> Program:
    """Two mixtures with a sum over earlier rows between them, and the rows of their result that are wanted: the second computes those alone."""
    register_torch_ops()
    torch.manual_seed(0)
    model = torch.nn.Sequential(Mixture(), Sum(), Mixture())
    inputs = [Input("rows", ("tokens", HIDDEN), torch.float32), Input("logit_rows", ("requests",), torch.int32)]
    ranges = {"tokens": (1, 64), "requests": (1, 16)}
    program = capture_callable(
        lambda rows, wanted: torch.ops.fxhlo.select_rows(model(rows), wanted), model, inputs, ranges
    )
    return run([Canonicalize(), SelectRows()], program, [verify])


def mixtures(program: Program) -> list[torch.fx.Node]:
    return [node for node in program.graph.nodes if node.target is torch.ops.fxhlo.moe.default]


def results(program: Program, **inputs: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The program's result, and the ids that each mixture got."""
    found: list[torch.Tensor] = []
    chosen = {node.args[IDS] for node in mixtures(program)}

    class Watch(torch.fx.Interpreter):
        def run_node(self, node: torch.fx.Node) -> object:
            value = super().run_node(node)
            if node in chosen:
                found.append(value)
            return value

    given = {**program.tensors, **inputs}
    with torch.no_grad():
        (result,) = Watch(program.module).run(*(given[one.name] for one in program.arguments))
    return result, found


def test_unused_rows_choose_no_expert() -> None:
    before = captured()
    after = run([UnusedRows(), Canonicalize()], before, [verify])
    assert [one.name for one in after.arguments if one.kind == "input"] == ["rows", "logit_rows", "query_start_loc"]
    torch.manual_seed(1)
    rows = torch.randn(9, HIDDEN)
    wanted = torch.tensor([2, 5, 0, 0], dtype=torch.int32)
    starts = torch.tensor([0, 3, 6, 6, 6], dtype=torch.int32)  # two requests of three tokens, and room for two more
    expected, usual = results(before, rows=rows, logit_rows=wanted)
    found, (first, second) = results(after, rows=rows, logit_rows=wanted, query_start_loc=starts)
    assert torch.equal(found[:2], expected[:2])
    assert torch.equal(first[:6], usual[0][:6])
    assert (first[6:] == -1).all()
    assert torch.equal(second, usual[1]), "selected rows may be more than requests, for log-probabilities of prompts"


def test_a_full_step_is_as_it_was() -> None:
    before = captured()
    after = run([UnusedRows()], before, [verify])
    torch.manual_seed(2)
    inputs = {"rows": torch.randn(4, HIDDEN), "logit_rows": torch.tensor([0, 3], dtype=torch.int32)}
    expected, usual = results(before, **inputs)
    found, chosen = results(after, **inputs, query_start_loc=torch.tensor([0, 1, 4], dtype=torch.int32))
    assert torch.equal(found, expected)
    assert all(torch.equal(one, other) for one, other in zip(chosen, usual, strict=True))


def test_products_are_told_how_many_rows_are_used() -> None:
    before = run([Linear()], captured(), [verify])
    after = run([UnusedRows(products=True), Canonicalize()], before, [verify])
    products = [node for node in after.graph.nodes if node.target is torch.ops.fxhlo.linear.default]
    count = products[0].args[3]
    assert [len(node.args) for node in products] == [4, 3], (
        "of all tokens; of the rows that were selected, all are computed"
    )
    torch.manual_seed(3)
    inputs = {"rows": torch.randn(9, HIDDEN), "logit_rows": torch.tensor([2, 5, 0, 0], dtype=torch.int32)}
    starts = torch.tensor([0, 3, 6, 6, 6], dtype=torch.int32)
    found: dict[torch.fx.Node, torch.Tensor] = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, node: torch.fx.Node) -> object:
            value = found[node] = super().run_node(node)
            return value

    given = {**after.tensors, **inputs, "query_start_loc": starts}
    with torch.no_grad():
        (result,) = Watch(after.module).run(*(given[one.name] for one in after.arguments))
    assert found[count].tolist() == [6]
    expected, _ = results(before, **inputs)
    assert torch.equal(result, expected)


@pytest.mark.parametrize(
    "moved",
    [
        lambda rows: rows[rows.sum(-1).argsort()],
        lambda rows: rows.flip(0),
        lambda rows: rows.roll(1, 0),
        lambda rows: rows.index_select(0, rows.sum(-1).argsort()),
        lambda rows: torch.cat([rows[1:], rows[:1]]),
    ],
)
def test_a_model_that_moves_rows_keeps_all_of_them(moved: Callable[[torch.Tensor], torch.Tensor]) -> None:
    model = torch.nn.Linear(HIDDEN, HIDDEN, bias=False)
    inputs = [Input("rows", ("tokens", HIDDEN), torch.float32)]
    program = capture_callable(lambda rows: model(moved(rows)), model, inputs, {"tokens": (2, 64)})
    after = run([Canonicalize(), Linear(), UnusedRows(products=True)], program, [verify])
    (product,) = [node for node in after.graph.nodes if node.target is torch.ops.fxhlo.linear.default]
    assert len(product.args) == 3
    assert "the model moves rows" in after.notes[-1].reason


def test_rows_of_a_table_and_values_within_a_row_are_not_moved() -> None:
    model = torch.nn.Linear(HIDDEN, HIDDEN, bias=False)
    table = torch.randn(100, HIDDEN)

    def step(rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        halves = torch.cat([rows[:, 8:], rows[:, :8]], -1).roll(1, 1).flip(-1).sort(-1).values
        return model(halves + table[positions] + table.index_select(0, positions))

    inputs = [Input("rows", ("tokens", HIDDEN), torch.float32), Input("positions", ("tokens",), torch.int32)]
    program = capture_callable(step, model, inputs, {"tokens": (2, 64)})
    after = run([Canonicalize(), Linear(), UnusedRows(products=True)], program, [verify])
    (product,) = [node for node in after.graph.nodes if node.target is torch.ops.fxhlo.linear.default]
    assert len(product.args) == 4


def test_products_of_an_encoder_are_told_by_the_bounds_that_its_attention_has() -> None:
    register_torch_ops()
    model = torch.nn.Linear(HIDDEN, HIDDEN)

    def step(rows: torch.Tensor) -> torch.Tensor:
        heads = model(rows).view(-1, 2, 8)
        fixed = {"scale": 0.3, "sliding_window": 0, "soft_cap": 0.0, "layer": "encoder.0", "causal": False}
        return torch.ops.fxhlo.attention(heads, heads, heads, None, None, **fixed).reshape(rows.shape)

    inputs = [Input("rows", ("tokens", HIDDEN), torch.float32)]
    program = capture_callable(step, model, inputs, {"tokens": (1, 64)})
    after = run([VarlenAttention(), Linear(), UnusedRows(products=True)], program, [verify])
    (product,) = [node for node in after.graph.nodes if node.target is torch.ops.fxhlo.linear.default]
    assert len(product.args) == 4
    assert [one.name for one in after.arguments if one.kind == "input"] == ["rows", "query_start_loc"]


def test_a_program_without_either_gets_no_input() -> None:
    model = torch.nn.Linear(HIDDEN, HIDDEN)
    program = capture_callable(model, model, [Input("rows", ("tokens", HIDDEN), torch.float32)], {"tokens": (1, 64)})
    assert UnusedRows()(program) is program
    assert UnusedRows(products=True)(program) is program, "it has no product of this kind yet"
