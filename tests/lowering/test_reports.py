"""Small modules in the manner of public bug reports against torch.export, torch_xla and torch-mlir, beside eager torch."""

from __future__ import annotations

import copy

import pytest
import torch
from differential import agree, check, eager, execute, lowered
from torch.nn import functional as F

import fxhlo
from fxhlo.lowering.errors import CaptureError

X, V = torch.randn(2, 3), torch.randn(6)


class Owner(torch.nn.Module):
    """forward(...) is function(self, ...); it has a weight, a buffer and a tensor that is neither."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.weight = torch.nn.Parameter(torch.randn(3, 3))
        self.register_buffer("table", torch.arange(6.0).view(2, 3))
        self.plain = torch.ones(3) * 2

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def assigned(self, x):
    self.table = self.table + x
    return self.table.sum()


def checkpointed(self, x):
    return torch.utils.checkpoint.checkpoint(lambda z: (z @ self.weight).relu(), x, use_reentrant=False)


CASES = {
    "a result is an argument": (lambda self, x: (x, x, x.t()), (X,)),
    "one tensor twice": (lambda self, a, b: a + b, (X, X)),
    "a buffer and its view as results": (lambda self, x: (self.table.add_(x), self.table[0]), (X,)),
    "a weight as a result": (lambda self, x: self.weight, (X,)),
    "a buffer that is assigned": (assigned, (X,)),
    "a tensor that is an attribute": (lambda self, x: x + self.plain, (X,)),
    "no rows": (lambda self, x: (x.sum(0), x.cumsum(0), x @ self.weight), (torch.zeros(0, 3),)),
    "no columns": (lambda self, x: F.linear(x, torch.ones(4, 0)), (torch.zeros(2, 0),)),
    "a 0-d argument": (lambda self, a: (a + 1, a.view(1), a[None]), (torch.tensor(3.0),)),
    "a 0-d tensor promotes by kind alone": (
        lambda self, a, b: (a + b, a * b.long()),
        (torch.ones(3, dtype=torch.float16), torch.tensor(2.0, dtype=torch.float64)),
    ),
    "numbers, None and strings": (
        lambda self, x, n, none, mode: F.interpolate(x[None] * n, scale_factor=2, mode=mode) if none is None else x,
        (X, 3, None, "nearest"),
    ),
    "nested arguments": (
        lambda self, d: d["a"] + d["b"][0] * d["b"][1]["c"] * d["i"],
        ({"a": X, "b": [X + 1, {"c": X}], "n": None, "i": 3},),
    ),
    "an expanded argument": (lambda self, x: x + 1, (torch.randn(1, 3).expand(4, 3),)),
    "a strided argument": (lambda self, x: x.reshape(-1) + 1, (torch.randn(4, 6)[::2, 1::2],)),
    "a conjugate argument": (lambda self, x: x + 1, (torch.randn(3, dtype=torch.complex64).conj(),)),
    "an argument that wants gradients": (lambda self, x: (x * 2).add_(1), (torch.randn(3, requires_grad=True),)),
    "list elements changed in place": (lambda self, parts: [part.add_(1) for part in parts], ([X, V],)),
    "rows swapped": (lambda self, x: (x.__setitem__([0, 1], x[[1, 0]]), x * 1)[1], (X,)),
    "numbers as results": (lambda self, x: (1, 2.5, True, x.shape, x), (X,)),
    "no results": (lambda self, x: (), (X,)),
    "no arguments": (lambda self: self.weight * 2, ()),
    "an affine grid of one row": (lambda self, t: F.affine_grid(t, (2, 1, 1, 5)), (torch.randn(2, 2, 3),)),
    "an affine grid of one column": (
        lambda self, t: F.affine_grid(t, (2, 1, 3, 4, 1), align_corners=True),
        (torch.randn(2, 3, 4),),
    ),
    "a nested cond": (
        lambda self, x: torch.cond(
            x.sum() > 0,
            lambda x: torch.cond(x[0, 0] > 0, lambda x: x @ self.weight, lambda x: x - 1, (x,)),
            lambda x: x * 2,
            (x,),
        ),
        (X,),
    ),
    "a checkpoint": (checkpointed, (X,)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_report(case: str) -> None:
    function, args = CASES[case]
    module = Owner(function)
    hlo = lowered(copy.deepcopy(module), args)  # a module and what is lowered from it share their buffers
    agree(eager(module, args), execute(hlo, args))


def test_inputs_may_have_the_names_of_weights_and_buffers() -> None:
    class Named(Owner):
        def forward(self, table, *, weight):
            return table @ self.weight - weight * self.table

    module = Named(None)
    check(module, X, kwargs={"weight": X + 1})
    run = fxhlo.lower(module, (X,), {"weight": X}).compile()
    assert [argument.name for argument in run.arguments] == ["table_input", "weight_input"]


def test_keyword_arguments_come_in_the_order_of_the_call() -> None:
    check(Owner(lambda self, a, b, c: a - b * c), kwargs={"c": X, "a": X + 1, "b": X + 2})


def test_an_attribute_that_is_changed_in_place_is_refused() -> None:
    def function(self, x):
        self.plain.add_(1)
        return x + self.plain

    with pytest.raises(CaptureError, match="register_buffer"):
        lowered(Owner(function), (X,))
