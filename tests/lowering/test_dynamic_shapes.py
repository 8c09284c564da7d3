"""Symbolic dimensions: named as the user named them, bound at emission, checked against ranges and guards; one capture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.export import Dim, ShapesCollection

from fxhlo.lowering.capture import tracing
from fxhlo.lowering.capture.exporting import capture
from fxhlo.lowering.errors import GuardError
from fxhlo.lowering.lower import lower, lower_program
from fxhlo.passes.contract import ContractError
from fxhlo.runtime.core.errors import ShapeError
from fxhlo.runtime.core.targets import Target

from .differential import agree, check, eager, execute

CPU = Target.parse("cpu")
BATCH = Dim("batch", min=2, max=64)


class Sum(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.sum(1) + y.sum(1)


class Nested(torch.nn.Module):
    def forward(self, pair: dict, rest: list) -> torch.Tensor:
        return pair["a"] + pair["b"][0] + rest[0]


class Branch(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > 5:  # the guard's line
            return x * 2
        return x + 1


X, Y = torch.randn(6, 4), torch.randn(6, 3)
PAIR = ({"a": X, "b": [X]}, [X])
BATCHES = [(6, "batch", 2, 64)]


@pytest.mark.parametrize(
    ("module", "args", "kwargs", "shapes", "dims"),
    [
        pytest.param(Sum(), (X, Y), None, ({0: BATCH}, {0: BATCH}), BATCHES, id="a tuple"),
        pytest.param(Sum(), (X, Y), None, [(BATCH, Dim.STATIC), [BATCH, Dim.STATIC]], BATCHES, id="lists of dims"),
        pytest.param(
            Sum(),
            (X, Y),
            None,
            {"y": {0: BATCH, 1: Dim("k")}, "x": {0: BATCH}},
            [*BATCHES, (3, "k", 0, None)],
            id="a dict in another order",
        ),
        pytest.param(
            Sum(),
            (),
            {"y": Y, "x": X},
            {"x": {0: BATCH}, "y": {0: BATCH, 1: Dim("k")}},
            [*BATCHES, (3, "k", 0, None)],
            id="keyword arguments",
        ),
        pytest.param(Nested(), PAIR, None, ({"a": {0: BATCH}, "b": [{0: BATCH}]}, [{0: BATCH}]), BATCHES, id="nested"),
        pytest.param(Sum(), (X, Y), None, ({0: Dim.AUTO}, {0: Dim.AUTO}), [(6, "x.0", 0, None)], id="AUTO"),
        pytest.param(Sum(), (X, Y), None, ({1: Dim.DYNAMIC}, None), [(4, "x.1", 0, None)], id="DYNAMIC"),
        pytest.param(
            torch.nn.Linear(4, 4), (X,), None, ({0: 2 * Dim("half", min=1, max=9)},), [(3, "half", 1, 9)], id="derived"
        ),
    ],
)
def test_dims_are_named_and_ranged(module, args, kwargs, shapes, dims):
    program = capture(module, args, kwargs, dynamic_shapes=shapes)
    assert [(dim.hint, dim.name, dim.minimum, dim.maximum) for dim in program.dims] == dims


def test_a_collection_of_shapes_names_dims():
    shapes = ShapesCollection()
    shapes[X], shapes[Y] = {0: BATCH}, {0: BATCH}
    assert [dim.name for dim in capture(Sum(), (X, Y), dynamic_shapes=shapes).dims] == ["batch"]


def test_an_exported_program_names_dims_by_place():
    exported = torch.export.export(Sum(), (X, Y), dynamic_shapes=({0: BATCH}, {0: BATCH}))
    (dim,) = capture(exported).dims
    assert (dim.name, dim.aliases, dim.maximum) == ("x.0", ("x.0", "y.0"), 64)
    assert lower(exported, bindings={"y.0": 9}).signature.arguments[0].shape == (9, 4)


def test_one_capture_many_bindings():
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 3), torch.nn.Softmax(-1))
    program = capture(module, (X,), dynamic_shapes=({0: BATCH},))
    before = tracing.captures
    for size in (2, 3, 7, 64):
        x = torch.randn(size, 4)
        hlo = lower_program(program, bindings={"batch": size}, target=CPU)
        assert hlo.bindings == {"batch": size}
        agree(eager(module, (x,)), execute(hlo, (x,)))
    assert tracing.captures == before


def test_unbound_dimensions_stay_dynamic():
    hlo = lower(Sum(), (X, Y), dynamic_shapes=({0: BATCH}, {0: BATCH}))
    assert [(dim.name, dim.minimum, dim.maximum) for dim in hlo.dims] == [("batch", 2, 64)]
    assert hlo.bind(batch=9).signature.results[0].shape == (9,)
    assert hlo.bind_example().signature.results[0].shape == (6,)
    before = tracing.captures
    run = hlo.compile()
    for size in (6, 2, 9, 6):
        args = torch.randn(size, 4), torch.randn(size, 3)
        (actual,) = run(*args)
        torch.testing.assert_close(torch.from_dlpack(actual), Sum()(*args))
    assert tracing.captures == before
    with pytest.raises(GuardError, match="bound to 65"):
        run(torch.randn(65, 4), torch.randn(65, 3))
    with pytest.raises(ShapeError, match="y has 4 in dimension 0, where the other arguments ask for 5"):
        run(torch.randn(5, 4), torch.randn(4, 3))
    with pytest.raises(ShapeError, match="x has 3 dimensions, and was captured with 2"):
        run(torch.randn(5, 4, 1), torch.randn(5, 3))


def test_an_exported_program_with_open_sizes_stays_dynamic(tmp_path):
    model = torch.nn.Linear(4, 2)
    torch.export.save(
        torch.export.export(model, (X,), dynamic_shapes=({0: Dim("rows", max=64)},)), tmp_path / "model.pt2"
    )
    run = lower(torch.export.load(tmp_path / "model.pt2")).compile()
    for size in (1, 5):
        x = torch.randn(size, 4)
        torch.testing.assert_close(torch.from_dlpack(run(x)[0]), model(x).detach())


def test_an_open_size_that_no_argument_has_is_bound_before():
    class Repeat(torch.nn.Module):
        def forward(self, x, n: int):
            return x.repeat(n, 1)

    shapes = ({0: Dim("rows")}, Dim.DYNAMIC)
    with pytest.raises(GuardError, match="no tensor has it as a size"):
        lower(Repeat(), (X, 2), dynamic_shapes=shapes).compile()
    assert lower(Repeat(), (X, 2), dynamic_shapes=shapes, bindings={"n": 3}).compile()(X)[0].shape == (18, 4)


@pytest.mark.parametrize("ask", [lambda hlo: hlo.text, lambda hlo: hlo.bytecode, lambda hlo: hlo.signature])
def test_what_needs_sizes_says_so(ask):
    hlo = lower(Sum(), (X, Y), dynamic_shapes=({0: BATCH}, {0: BATCH, 1: Dim("k")}), bindings={"k": 3})
    with pytest.raises(
        GuardError, match=r"has numbers, and the size of batch is not bound\n  next: hlo.bind\(batch=...\)"
    ):
        ask(hlo)


def test_sizes_that_are_given_in_part_leave_the_others_dynamic():
    hlo = lower(Sum(), (X, Y), dynamic_shapes=({0: BATCH, 1: Dim("j")}, {0: BATCH}), bindings={"j": 5})
    assert [dim.name for dim in hlo.dims] == ["batch"]
    assert hlo.bind(batch=4).signature.arguments[0].shape == (4, 5)
    with pytest.raises(GuardError, match="there is no dimension 'rows'"):
        lower(Sum(), (X, Y), dynamic_shapes=({0: BATCH}, {0: BATCH}), bindings={"rows": 5})


def test_programs_of_several_shapes_share_weights_and_state():
    model, expected = torch.nn.BatchNorm1d(4), torch.nn.BatchNorm1d(4)
    run = lower(model, (X,), dynamic_shapes=({0: BATCH},)).compile()
    for size in (3, 5, 3, 8):
        x = torch.randn(size, 4)
        (actual,) = run(x)
        torch.testing.assert_close(torch.from_dlpack(actual), expected(x))


def test_derived_sizes_are_solved():
    run = lower(torch.nn.Linear(4, 4), (X,), dynamic_shapes=({0: 2 * Dim("half", max=9)},)).compile()
    assert run(torch.randn(10, 4))[0].shape == (10, 4)
    with pytest.raises(ShapeError, match="has 5 in dimension 0"):
        run(torch.randn(5, 4))


def test_a_bundle_has_an_entry_for_each_size(tmp_path):
    hlo = lower(Sum(), (X, Y), dynamic_shapes=({0: BATCH}, {0: BATCH}))
    bundle = hlo.save(tmp_path / "bundle", bindings=[{"batch": 3}, {"batch": 5}])
    assert list(bundle) == ["main.batch=3", "main.batch=5"]
    args = torch.randn(5, 4), torch.randn(5, 3)
    torch.testing.assert_close(torch.from_dlpack(bundle["main.batch=5"](*args)[0]), Sum()(*args))
    with pytest.raises(GuardError, match="a bundle holds programs"):
        hlo.save(tmp_path / "other")


@pytest.mark.parametrize(
    ("bindings", "text"),
    [
        ({"batch": 1}, "dimension batch is bound to 1, but was captured for 2 to 64"),
        ({"batch": 65}, "dimension batch is bound to 65, but was captured for 2 to 64"),
        ({"tokens": 4}, "there is no dimension 'tokens'; dimensions: batch"),
        ({"batch": 4, "x.0": 5}, "dimension batch is bound to both 4 and 5"),
    ],
)
def test_bindings_out_of_range(bindings, text):
    with pytest.raises(GuardError, match=text):
        lower(Sum(), (X, Y), dynamic_shapes=({0: BATCH}, {0: BATCH}), bindings=bindings)


def test_a_broken_guard_names_dimension_and_line():
    with pytest.raises(GuardError, match=r"dimension x.0 is bound to 3") as caught:
        lower(Branch(), (X,), dynamic_shapes=({0: Dim.AUTO},), bindings={"x.0": 3})
    line = next(number for number, text in enumerate(open(__file__), 1) if "the guard's line" in text)
    assert caught.value.where == f"{__file__}:{line}"


def test_a_guard_on_two_dimensions():
    def longer(x, y):
        return x[: y.shape[0]] + y if x.shape[0] > y.shape[0] else y

    class Longer(torch.nn.Module):
        def forward(self, x, y):
            return longer(x, y)

    args, shapes = (torch.randn(9), torch.randn(4)), ({0: Dim.AUTO}, {0: Dim.AUTO})
    program = capture(Longer(), args, dynamic_shapes=shapes)
    lower_program(program, bindings={"x.0": 5, "y.0": 4}, target=CPU)
    with pytest.raises(GuardError, match=r"x.0=4, y.0=8 breaks the assumption") as caught:
        lower_program(program, bindings={"x.0": 4, "y.0": 8}, target=CPU)
    assert caught.value.where and caught.value.where.startswith(__file__)


def test_an_int_input_is_a_dimension():
    class Scale(torch.nn.Module):
        def forward(self, x, n: int):
            return x.repeat(n, 1) * n

    program = capture(Scale(), (X, 3), dynamic_shapes=(None, Dim.DYNAMIC))
    hlo = lower_program(program, bindings={"n": 5}, target=CPU)
    assert hlo.signature.results[0].shape == (30, 4)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.view(-1, 2, x.shape[1]) if x.shape[1] == 4 else x,
        lambda x: torch.cat([x, x.new_zeros(x.shape[0], 1)], 1),
        lambda x: torch.arange(x.shape[0])[:, None] + x,
        lambda x: x[-1:] + x[: x.shape[0] - 1],
        lambda x: x.softmax(0).cumsum(0) @ x.t(),
        lambda x: torch.nn.functional.pad(x, (0, 0, 0, 8 - x.shape[0] % 8)),
        lambda x: x.flatten().reshape(x.shape[1], -1).sum() / x.shape[0],
        lambda x: torch.full((x.shape[0],), 7) * x.shape[0],
        lambda x: torch.pdist(x),
        lambda x: torch.nn.functional.max_pool1d(x.t()[None], 2, 2, ceil_mode=True),
        lambda x: torch.linspace(0, 1, x.shape[0])[:, None] + x,
        lambda x: torch.nn.functional.interpolate(x[None], scale_factor=2.0, mode="linear"),
        lambda x: torch.nn.functional.interpolate(
            x[:, None], scale_factor=1.5, mode="linear", recompute_scale_factor=True
        ),
    ],
)
def test_ops_over_a_symbolic_size(function):
    check(function, torch.randn(6, 4), dynamic=({0: Dim.AUTO},))


DATA = "shape depends on data"


@pytest.mark.parametrize(
    ("function", "op", "reason"),
    [
        (lambda x: x.nonzero(), "aten.nonzero.default", DATA),
        (lambda x: x[x > 0], "aten.index.Tensor", DATA),
        (lambda x: torch.masked_select(x, x > 0), "aten.masked_select.default", DATA),
        (lambda x: torch.unique(x), "aten._unique2.default", DATA),
        (
            lambda x: torch.repeat_interleave(x, (x[:, 0] > 0).long(), dim=0),
            "aten.repeat_interleave.Tensor",
            "shape depends on the repeats: pass output_size, their sum",
        ),
    ],
)
def test_shapes_that_depend_on_data_are_refused(function, op, reason):
    with pytest.raises(ContractError, match=reason) as caught:
        check(function, X)
    assert [missing.overload for missing in caught.value.missing] == [op]
    assert caught.value.where


def test_results_match_at_the_ends_of_the_range():
    program = capture(Sum(), (X, Y), dynamic_shapes=({0: BATCH}, {0: BATCH}))
    for size in (2, 64):
        args = torch.randn(size, 4), torch.randn(size, 3)
        (result,) = execute(lower_program(program, bindings={"batch": size}, target=CPU), args).results
        np.testing.assert_allclose(result.numpy(), Sum()(*args).numpy(), rtol=1e-5, atol=1e-5)


def test_the_order_in_memory_takes_no_size_for_granted():
    class Windows(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.as_strided((x.shape[0], 3, 2), (8, 2, 1)) + 1

    run = lower(Windows(), (torch.randn(2, 8),), dynamic_shapes=({0: Dim("b", min=1, max=8)},)).compile()
    for batch in (1, 2, 5):
        x = torch.randn(batch, 8)
        torch.testing.assert_close(torch.from_dlpack(run(x)[0]), Windows()(x))
