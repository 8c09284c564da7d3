"""Control flow as StableHLO's if and while, against eager torch."""

from __future__ import annotations

import pytest
import torch
from torch._higher_order_ops.associative_scan import associative_scan
from torch._higher_order_ops.map import map as torch_map
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop

from fxhlo.lowering.lower import lower
from fxhlo.passes.contract import ContractError

from .differential import Call, check

X = torch.randn(5, 3)


def one_or_other(x: torch.Tensor) -> torch.Tensor:
    return torch.cond(x.sum() > 0, lambda x: x.sin() * 2, lambda x: x - 1, (x,))


@pytest.mark.parametrize("sign", [1, -1])
def test_cond(sign):
    hlo = check(one_or_other, sign * X.abs())
    assert "stablehlo.if" in str(hlo.module)


def test_cond_with_several_results_and_an_outer_value():
    def function(x, y):
        z = y * 2
        return torch.cond(x[0, 0] > 0, lambda x: (x + z, x.sum()), lambda x: (x - z, x.prod()), (x,))

    check(function, X, torch.randn(3))
    check(function, -X, torch.randn(3))


def test_cond_in_cond():
    def function(x):
        inner = lambda x: torch.cond(x.min() > -1, lambda x: x * 2, lambda x: x * 3, (x,))  # noqa: E731
        return torch.cond(x.sum() > 0, inner, lambda x: x - 1, (x,))

    for x in (X, X + 9, X - 9):
        check(function, x)


@pytest.mark.parametrize("rows", [3, 8])
def test_cond_over_a_size_is_decided_when_bound(rows):
    def function(x):
        return torch.cond(x.shape[0] > 5, lambda x: x * 2, lambda x: x + 1, (x,))

    hlo = check(function, torch.randn(rows, 3), dynamic=({0: torch.export.Dim.DYNAMIC},))
    assert "stablehlo.if" not in str(hlo.module)


def test_while_loop():
    def function(x, limit):
        count = torch.zeros((), dtype=torch.int64)
        return while_loop(lambda n, x: n < limit, lambda n, x: (n + 1, x * 1.5 + n), (count, x))

    for limit in (0, 1, 7):
        hlo = check(function, X, torch.tensor(limit))
    assert "stablehlo.while" in str(hlo.module)


def test_scan():
    def function(init, xs, weight):
        return scan(lambda carry, x: ((carry * 0.5 + x).tanh(), carry @ weight), init, xs)

    check(function, torch.randn(3), X, torch.randn(3, 2))


def test_scan_reversed_with_trees():
    def function(init, xs):
        def step(carry, x):
            return {"a": carry["a"] + x[0], "b": carry["b"] * 2}, (carry["b"].clone(), x[1] + 1)

        return scan(step, {"a": init, "b": init + 1}, (xs, xs * 2), reverse=True)

    check(function, torch.randn(3), X)


def test_map():
    check(lambda xs, y: torch_map(lambda x, y: (x.sum() * y, x.sort().values), xs, y), X, torch.randn(2))


def test_associative_scan():
    check(lambda x: associative_scan(lambda a, b: a * b + 1, x, 0, combine_mode="generic"), X)


def test_regions_without_gradients():
    def function(x):
        with torch.no_grad():
            y = x.sin()
        return y + x

    check(function, X)


def test_autocast_region():
    def function(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = x @ x.t()
        return y.float() + 1

    check(function, X, rtol=2e-2, atol=2e-2)


def test_missing_rules_inside_regions_are_listed():
    with pytest.raises(ContractError) as caught:
        lower(
            Call(
                lambda x: torch.cond(x.sum() > 0, lambda x: torch.linalg.eigvals(x).real + 0, lambda x: x[0] * 1, (x,))
            ),
            (X[:3],),
        )
    assert [missing.overload for missing in caught.value.missing] == ["aten.linalg_eig.default"]
