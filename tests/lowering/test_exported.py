"""Programs that a user exported: decomposed ones are taken as they are, others are decomposed; both mean the same."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from differential import agree, eager, execute
from torch.utils._pytree import GetAttrKey, register_pytree_node

import fxhlo
from fxhlo.lowering.errors import CaptureError


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(6, 4)
        self.register_buffer("count", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(1)
        low, high = torch.nn.functional.gelu(self.linear(x)).split([1, 3], -1)
        return torch.cat([high.softmax(-1), low], -1) + self.count


@pytest.fixture
def decompositions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for each program that torch decomposes."""
    calls: list[str] = []
    original = torch.export.ExportedProgram.run_decompositions

    def counted(self: torch.export.ExportedProgram, *args: object) -> torch.export.ExportedProgram:
        calls.append(self.dialect)
        return original(self, *args)

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", counted)
    return calls


def test_a_decomposed_program_is_not_decomposed_again(decompositions: list[str]) -> None:
    model, x = Model().eval(), torch.randn(3, 6)
    exported = torch.export.export(model, (x,))
    decomposed = exported.run_decompositions()
    before = str(decomposed.graph)
    decompositions.clear()
    hlo = fxhlo.lower(decomposed)
    assert decompositions == []
    assert str(decomposed.graph) == before
    twice = fxhlo.lower(exported)
    assert decompositions == ["TRAINING"]
    for lowered in (hlo, twice):
        actual = execute(lowered, (x,))
        expected = eager(Model.forward, (model, x))
        agree(expected, actual)


def test_what_has_no_rule_is_decomposed_all_the_same(decompositions: list[str]) -> None:
    x = torch.randn(3, 5)

    class Distance(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cdist(x, x + 1)

    kept = torch.export.export(Distance(), (x,)).run_decompositions({})
    decompositions.clear()
    assert any("cdist" in str(node.target) for node in kept.graph.nodes)
    actual = execute(fxhlo.lower(kept), (x,))
    assert decompositions == ["ATEN"]
    agree(eager(torch.cdist, (x, x + 1)), actual)


def test_control_flow_is_decomposed(decompositions: list[str]) -> None:
    """Its regions are graphs of their own, which nobody has looked into."""
    x = torch.randn(4)

    class Choice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cond(x.sum() > 0, lambda x: torch.nn.functional.gelu(x), operator.neg, (x,))

    decomposed = torch.export.export(Choice(), (x,)).run_decompositions()
    decompositions.clear()
    actual = execute(fxhlo.lower(decomposed), (x,))
    assert decompositions == ["ATEN"]
    agree(eager(Choice(), (x,)), actual)


class Anything(torch.nn.Module):
    """forward(x, *others) is what `function` says."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor, *others: object) -> object:
        return self.function(x, *others)


@pytest.mark.parametrize("others", [(None,), ("sum",), (3,), (2.5,), (True,), ((0, 1),)])
def test_arguments_that_are_no_tensors_are_taken_in(others: tuple) -> None:
    x = torch.randn(3, 5)

    def function(x: torch.Tensor, other: object) -> torch.Tensor:
        match other:
            case None:
                return x.cos()
            case str():
                return torch.nn.functional.mse_loss(x, x * 2, reduction=other)
            case tuple():
                return x.sum(other)
            case _:
                return x * other

    hlo = fxhlo.lower(Anything(function), (x, *others))
    assert [argument.kind for argument in hlo.signature.arguments] == ["input"]
    agree(eager(function, (x, *others)), execute(hlo, (x,)))


def test_none_is_no_result() -> None:
    x = torch.randn(3)
    exported = torch.export.export(Anything(lambda x: {"a": None, "b": [x.sin(), None], "c": 2}), (x,))
    for program in (exported, exported.run_decompositions()):
        actual = execute(fxhlo.lower(program), (x,))
        agree(eager(lambda x: (x.sin(), 2), (x,)), actual)


def test_a_result_that_is_no_array_is_refused() -> None:
    with pytest.raises(CaptureError, match="'abc', which no array can hold"):
        fxhlo.lower(Anything(lambda x: (x, "abc")), (torch.randn(3),))


def test_sparse_arguments_are_refused_by_name() -> None:
    with pytest.raises(fxhlo.FxhloError, match=r"x is a sparse_coo tensor.*\n.*next: pass it dense"):
        fxhlo.lower(Anything(lambda x: x.to_dense()), (torch.eye(3).to_sparse(),))


class Holder:
    """A plain object that holds tensors, as transformers' caches do."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        self.tensors = tensors


@pytest.mark.parametrize("strict", [False, True])
def test_a_buffer_that_is_reached_through_a_plain_object_is_updated(strict: bool) -> None:
    """transformers' static cache: non-strict export makes constants of its tensors, although they are registered too."""

    class Static(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = Holder(torch.zeros(4, 3), torch.zeros(()))
            self.register_buffer("rows", self.held.tensors[0], persistent=False)
            self.register_buffer("seen", self.held.tensors[1])

        def forward(self, x: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
            rows, seen = self.held.tensors
            seen.add_(1)
            rows.index_copy_(0, place, x)
            return rows.cumsum(0) * seen

    model = Static()
    exported = torch.export.export(model, (torch.ones(1, 3), torch.tensor([0])), strict=strict)
    hlo = fxhlo.lower(exported)
    assert {one.name for one in hlo.signature.arguments if one.alias is not None} == {"rows", "seen"}
    run = hlo.compile()
    for place in range(3):
        x, at = torch.randn(1, 3), torch.tensor([place])
        torch.testing.assert_close(torch.from_dlpack(run(x, at)[-1]), model(x, at))


class Pair:
    """A registered container whose construction computes: run_decompositions does that again while it traces."""

    def __init__(self, first: torch.Tensor, second: torch.Tensor) -> None:
        self.first, self.second = torch.cat([torch.tensor([]), first]), second


register_pytree_node(
    Pair,
    lambda pair: ([pair.first, pair.second], None),
    lambda parts, _: Pair(*parts),
    flatten_with_keys_fn=lambda pair: (
        [(GetAttrKey("first"), pair.first), (GetAttrKey("second"), pair.second)],
        None,
    ),
    serialized_type_name="test_exported.Pair",
)


class Paired(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Adding()

    def forward(self, pair: Pair, x: torch.Tensor) -> tuple[torch.Tensor, Pair]:
        return x * 2, self.inner(pair, x)


class Adding(torch.nn.Module):
    def forward(self, pair: Pair, x: torch.Tensor) -> Pair:
        return Pair(pair.first + x, torch.cat([torch.tensor([2.0]), pair.second]))


def test_registered_containers_are_taken_apart() -> None:
    first, second, x = torch.randn(3), torch.randn(2), torch.randn(3)
    hlo = fxhlo.lower(Paired(), (Pair(first, second), x))
    agree(eager(lambda a, b, x: Paired()(Pair(a, b), x), (first, second, x)), execute(hlo, (first, second, x)))
    assert "concatenate" in hlo.text and hlo.text.count("stablehlo.concatenate") == 1


def test_a_program_in_which_export_lost_a_derivative_is_refused() -> None:
    class Slope(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.func.grad(lambda y: y.sin().sum())(x)

    with pytest.raises(
        CaptureError, match=r"lost how lifted_tensor_0 was computed.*\n.*test_exported.py:.*\n.*the module itself"
    ):
        fxhlo.lower(torch.export.export(Slope(), (torch.randn(3),)))


@torch.library.custom_op("fxhlo_tests::parts", mutates_args=())
def parts(x: torch.Tensor) -> tuple[list[torch.Tensor], int]:
    return [x.clone(), x.clone()], 2


@parts.register_fake
def _(x: torch.Tensor) -> tuple[list[torch.Tensor], int]:
    return [torch.empty_like(x), torch.empty_like(x)], 2


def test_an_op_of_somebody_else_that_gives_lists_is_refused() -> None:
    class Parts(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return parts(x)[0][1] + 1

    with pytest.raises(fxhlo.FxhloError, match=r"fxhlo_tests\.parts\.default"):
        fxhlo.lower(Parts(), (torch.randn(3),))
