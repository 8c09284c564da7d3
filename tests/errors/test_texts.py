"""What users read when a model cannot be lowered: whole texts, with the file and line of this file, and what to do next.

Every kind of error of a lowering has its case here; a new one without a case fails `test_every_kind_of_error_has_a_case`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.export import Dim

import fxhlo
from fxhlo.lowering import errors
from fxhlo.lowering.registry import rule
from fxhlo.passes.contract import ContractError
from fxhlo.runtime.errors import FxhloError, UnsupportedError

X = torch.ones(4, 4)


class Module(torch.nn.Module):
    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> object:
        return self.function(*args)


def several_things(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    mask = x > 0
    return (
        x[mask],
        torch.linalg.eigvals(x).abs() + 0,
        torch.linalg.eigvals(x + 1).abs() + 0,
        torch.unique(x),
    )


class Longer(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] > 3 else x


torch.library.define("fxhlo_errors::broken", "(Tensor x) -> Tensor")
torch.library.impl("fxhlo_errors::broken", "CompositeExplicitAutograd")(lambda x: x.clone())
torch.library.register_fake("fxhlo_errors::broken")(lambda x: torch.empty_like(x))
rule("fxhlo_errors.broken.default")(lambda ctx, x: fxhlo.lowering.build.convert(x, torch.int32))
torch.library.define("fxhlo_errors::unknown", "(Tensor x) -> Tensor")
torch.library.register_fake("fxhlo_errors::unknown")(lambda x: torch.empty_like(x))

CASES: dict[str, tuple[type[FxhloError], Callable[[], object], str]] = {
    "everything at once": (
        ContractError,
        lambda: fxhlo.lower(Module(several_things), (X,)),
        """\
3 ops have no rule:
  aten.linalg_eig.default (2x) at HERE: eigenvalues of general matrices need LAPACK, which a portable module cannot call; symmetric ones: torch.linalg.eigh
  aten._unique2.default (1x) at HERE: its result's shape depends on data; a compiled module's shapes are fixed: use a masked form such as torch.where
  aten.index.Tensor (1x) at HERE: its result's shape depends on data; a compiled module's shapes are fixed: use a masked form such as torch.where
  at: HERE
  next: add a rule as docs/add_an_op.md shows, or replace the op in the model""",
    ),
    "an op of one's own": (
        ContractError,
        lambda: fxhlo.lower(Module(lambda x: torch.ops.fxhlo_errors.unknown(x)), (X,)),
        """\
1 ops have no rule:
  fxhlo_errors.unknown.default (1x) at HERE; there are rules for fxhlo_errors.broken.default
  at: HERE
  next: add a rule as docs/add_an_op.md shows, or replace the op in the model""",
    ),
    "no module": (
        errors.CaptureError,
        lambda: fxhlo.lower(several_things, (X,)),  # type: ignore[arg-type]
        """\
lower takes an nn.Module or an ExportedProgram, not function
  next: wrap a function in an nn.Module whose forward calls it""",
    ),
    "a branch on a value": (
        errors.CaptureError,
        lambda: fxhlo.lower(Module(lambda x: x if x.sum() > 0 else -x), (X,)),
        """\
torch.export could not capture Module: GuardOnDataDependentSymNode: .*
  next: make the module exportable: torch.export.export\\(module, args\\) shows the whole story""",
    ),
    "out of range": (
        errors.GuardError,
        lambda: fxhlo.lower(
            Module(torch.neg), (X,), dynamic_shapes=(({0: Dim("rows", max=8)},),), bindings={"rows": 9}
        ),
        """\
dimension rows is bound to 9, but was captured for 0 to 8
  next: bind a size in that range, or capture with a wider one (dynamic_shapes)""",
    ),
    "a guard": (
        errors.GuardError,
        lambda: fxhlo.lower(Longer(), (X,), dynamic_shapes=({0: Dim.AUTO},), bindings={"x.0": 3}),
        """\
dimension x.0 is bound to 3, but was captured for 4 and more
  at: HERE
  next: bind a size in that range, or capture with a wider one (dynamic_shapes)""",
    ),
    "no such dimension": (
        errors.GuardError,
        lambda: fxhlo.lower(Module(torch.neg), (X,), bindings={"rows": 9}),
        """\
there is no dimension 'rows'; dimensions: none: every size is static
  next: name one of these in bindings""",
    ),
    "a rule that is wrong": (
        errors.LoweringError,
        lambda: fxhlo.lower(Module(lambda x: torch.ops.fxhlo_errors.broken(x)), (X,)),
        """\
the rule of fxhlo_errors.broken.default built [4, 4] torch.int32 where the graph says [4, 4] torch.float32
  at: HERE
  next: correct the rule: see docs/add_an_op.md""",
    ),
    "a dtype that StableHLO lacks": (
        errors.LoweringError,
        lambda: fxhlo.lower(Module(lambda x: x.to(torch.complex32)), (X,)),
        """\
torch.complex32 has no StableHLO element type
  next: convert the tensor to a supported dtype""",
    ),
    "as many values as a mask has": (
        UnsupportedError,
        lambda: fxhlo.lower(Module(lambda x, y: torch.index_put(x, [x > 0], y)), (X, torch.ones(16))),
        """\
an assignment through a mask takes as many values as the mask has True, which depends on data
  at: HERE
  next: assign one value, or use torch.where(mask, values, x) with values of x's shape""",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_text(case: str) -> None:
    kind, provoke, expected = CASES[case]
    with pytest.raises(kind) as caught:
        provoke()
    text = re.sub(rf"{re.escape(str(Path(__file__)))}:\d+", "HERE", str(caught.value))
    assert type(caught.value) is kind
    if ".*" in expected:
        assert re.fullmatch(expected, text), text
    else:
        assert text == expected


def test_every_kind_of_error_has_a_case() -> None:
    kinds = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, FxhloError)}
    assert kinds - {FxhloError} <= {kind for kind, _, _ in CASES.values()}


def test_the_line_is_the_line() -> None:
    with pytest.raises(ContractError) as caught:
        fxhlo.lower(Module(several_things), (X,))
    lines = Path(__file__).read_text().splitlines()
    for missing, holds in zip(caught.value.missing, ("eigvals(x)", "unique(x)", "x[mask]"), strict=True):
        assert missing.where is not None
        assert holds in lines[int(missing.where.rpartition(":")[2]) - 1]
