"""A dynamic size bound to 1 or 0: what eager torch gives at that size, or an error that names the line."""

from __future__ import annotations

import pytest
import torch
from differential import Call, agree, eager, execute
from tiny_transformers import build
from torch.export import Dim

from fxhlo.lowering.capture.exporting import capture
from fxhlo.lowering.errors import GuardError
from fxhlo.lowering.lower import lower, lower_program
from fxhlo.runtime.core.targets import Target

CPU = Target.parse("cpu")
X = torch.randn(3, 5)


def right_or_refused(function, sizes: tuple[int, ...], dims: dict, example: torch.Tensor = X) -> GuardError | None:
    """Asserts that the program bound to `sizes` is eager torch's; gives the error where it is refused."""
    program = capture(Call(function), (example,), dynamic_shapes={"args": (dims,)})
    x = torch.randn(sizes)
    bindings = {f"args_0.{index}": size for index, size in enumerate(sizes) if index in dims}
    try:
        hlo = lower_program(program, bindings=bindings, target=CPU)
    except GuardError as problem:
        return problem
    agree(eager(function, (x,)), execute(hlo, (x,)))
    return None


@pytest.mark.parametrize("size", [0, 1, 2])
@pytest.mark.parametrize(
    "dim", [Dim("B"), Dim("B", min=0), Dim.DYNAMIC, Dim.AUTO], ids=["Dim", "min", "DYNAMIC", "AUTO"]
)
def test_what_does_not_ask_for_the_size_takes_every_size(dim, size):
    function = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.LayerNorm(4), torch.nn.GELU(), torch.nn.Softmax(-1))
    assert right_or_refused(function, (size, 5), {0: dim}) is None


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + x.sum(0, keepdim=True),
        lambda x: x.view(x.shape[0], 1, 5).expand(-1, 2, -1),
        lambda x: x.t().reshape(-1),
        lambda x: x[:, None] @ x[:, :, None],
        lambda x: torch.cat([x, x], 0).chunk(2, 1)[0],
        lambda x: torch.nn.functional.linear(x[None], torch.ones(2, 5), torch.ones(2)),
        lambda x: torch.einsum("bi,bj->bij", x, x).mean(0),
        lambda x: x.expand(x.shape[0], 5) * torch.arange(x.shape[0])[:, None],
        lambda x: x[torch.zeros(x.shape[0], dtype=torch.long)],
        lambda x: torch.nn.functional.scaled_dot_product_attention(x[None], x[None], x[None]),
    ],
)
def test_ops_that_broadcast_are_right_at_one(function):
    assert right_or_refused(function, (1, 5), {0: Dim.DYNAMIC}) is None


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.squeeze(1),
        lambda x: x.squeeze(),
        lambda x: x.squeeze((0, 1)),
        lambda x: x.squeeze_(1) + 1,
        lambda x: x + 1 if x.shape[1] == 1 else x * 2,
        lambda x: x + 1 if x.shape[1] > 1 else x * 2,
        lambda x: torch.atleast_2d(x.squeeze(1)) * 2,
    ],
)
@pytest.mark.parametrize("dim", [Dim("S", min=1), Dim.DYNAMIC], ids=["min", "DYNAMIC"])
def test_a_model_that_asks_whether_a_size_is_one_is_refused_there(function, dim):
    problem = right_or_refused(function, (3, 1), {1: dim})
    assert problem is not None
    assert problem.where is not None
    assert problem.where.startswith(__file__)
    assert right_or_refused(function, (3, 4), {1: dim}) is None


def test_an_exported_program_is_checked_too():
    exported = torch.export.export(Call(lambda x: x.squeeze(1)), (X,), dynamic_shapes={"args": ({1: Dim("S", min=1)},)})
    with pytest.raises(GuardError, match=r"aten.squeeze.dim gives \[3\]"):
        lower(exported, bindings={"args_0.1": 1})
    assert lower(exported, bindings={"args_0.1": 4}).signature.results[0].shape == (3, 4)


def test_an_example_may_be_a_part_of_a_larger_tensor():
    """Its strides are symbolic, and no dimension's."""
    part = torch.randn(4, 8)[:, :5]
    assert right_or_refused(lambda x: x * 2 + x.shape[1], (1, 5), {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, part) is None


def test_an_example_of_one_row_stands_for_all():
    function = torch.nn.Linear(5, 2)
    assert right_or_refused(function, (1, 5), {0: Dim("B")}, X[:1]) is None
    assert right_or_refused(function, (4, 5), {0: Dim("B")}, X[:1]) is None


def test_an_example_of_one_row_that_broadcasts():
    """Two sizes that only fit each other because one of them is 1."""
    program = capture(Call(torch.add), (X, X[:1]), dynamic_shapes={"args": ({0: Dim.AUTO}, {0: Dim.AUTO})})
    hlo = lower_program(program, bindings={"args_0.0": 7}, target=CPU)
    args = torch.randn(7, 5), torch.randn(1, 5)
    agree(eager(torch.add, args), execute(hlo, args))


@pytest.mark.conformance
def test_a_language_model_captured_with_two_rows_serves_one() -> None:
    model, args = build("llama")
    program = capture(model, args, dynamic_shapes={"values": tuple({0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for _ in args)})
    rows = {dim.name: 1 for dim in program.dims if any(place.endswith(".0") for place in dim.aliases)}
    hlo = lower_program(program, bindings=rows, target=CPU)
    one = tuple(tensor[:1] for tensor in args)
    agree(eager(model, one), execute(hlo, one), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("function", [lambda x: x.squeeze(0).sum(0), lambda x: x.squeeze(0)], ids=["used", "returned"])
def test_an_example_of_one_row_does_not_hide_a_squeeze(function):
    """torch.export takes the general branch whatever the example's size is."""
    dynamic = lower(Call(function), (torch.randn(1, 4),), dynamic_shapes={"args": ({0: Dim("b")},)})
    with pytest.raises(GuardError, match="squeeze") as caught:
        dynamic.compile()(torch.randn(1, 4))
    assert __file__ in str(caught.value.where)


def test_a_call_may_have_no_rows():
    dynamic = lower(torch.nn.Linear(4, 2), (torch.randn(3, 4),), dynamic_shapes=({0: Dim("b")},)).compile()
    (result,) = dynamic(torch.randn(0, 4))
    assert result.shape == (0, 2)
    (result,) = dynamic(torch.randn(5, 4))
    assert result.shape == (5, 2)
