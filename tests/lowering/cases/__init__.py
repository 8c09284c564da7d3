"""The differential cases of the rules: for every overload, the calls on which it is compared with eager torch.

A family of rules, lowering/ops/<family>.py, has its cases in cases/<family>.py. Rules of one shape of schema need none there: they share
UNARY, BINARY and SCALARS of cases/operands.py. What only a trace makes (control flow, mutation, `fxhlo::` ops) is tested in files of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from overloads import Call, same

from cases.compared import REFERENCES, SEEN, TOLERANCES
from cases.operands import BINARY, SCALARS, UNARY

FAMILIES = (
    "activation",
    "compare",
    "complex_numbers",
    "convert",
    "convolution",
    "create",
    "cumulative",
    "elementwise",
    "embedding",
    "fourier",
    "index",
    "linear_algebra",
    "matmul",
    "norm",
    "pool",
    "reduce",
    "resize",
    "shape",
    "slice_scatter",
    "sort",
    "special",
)
BY_FAMILY: dict[str, dict[str, list[tuple]]] = {family: import_module(f"cases.{family}").CASES for family in FAMILIES}
CASES: dict[str, list[tuple]] = {overload: given for cases in BY_FAMILY.values() for overload, given in cases.items()}

ELSEWHERE = {
    "transformers.grouped_mm_fallback.default": "tests/lowering/test_models.py",
}
"""Rules of ops that are there only where another package is imported, and the file that tests them."""


def calls(overload: str) -> Iterator[Call]:
    """The calls of one overload that eager torch takes."""
    for given in _given(overload):
        args, kwargs = (given[:-1], given[-1]) if given and isinstance(given[-1], dict) else (given, {})
        call = Call(
            overload,
            tuple(args),
            dict(kwargs),
            SEEN.get(overload, same),
            TOLERANCES.get(overload, {}),
            REFERENCES.get(overload),
        )
        if call.works():
            yield call


def _given(overload: str) -> list[tuple]:
    if overload in CASES:
        return CASES[overload]
    arguments = Call(overload, ()).op._schema.arguments
    kinds = [str(argument.type) for argument in arguments if not argument.has_default_value()]
    if kinds == ["Tensor"]:
        return [(x,) for x in UNARY]
    if kinds == ["Tensor", "Tensor"]:
        return list(BINARY)
    return list(SCALARS) if kinds == ["Tensor", "number"] else []
