"""The registry: one rule an overload, parameters as the ATen schema has them, near misses that help."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest
import torch

from fxhlo.lowering import registry
from fxhlo.lowering.errors import LoweringError

MISSING = inspect.Parameter.empty
ENUMS = {"ScalarType", "MemoryFormat", "Layout"}
"""Types whose defaults a schema gives as numbers; no rule depends on them."""


def aten_rules() -> Iterator[str]:
    return (name for name in sorted(registry.rules()) if name.split(".")[0] in ("aten", "prims"))


def overload_of(name: str) -> torch._ops.OpOverload:
    namespace, op, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), op), overload)


@pytest.mark.parametrize("name", aten_rules())
def test_parameters_are_the_schemas(name: str) -> None:
    """Names, order and defaults; a rule shared by overloads may leave a keyword-only parameter positional."""
    first, *parameters = inspect.signature(registry.rules()[name]).parameters.values()
    assert first.name == "ctx"
    if [p.kind for p in parameters] == [inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD]:
        return  # a rule that binds its arguments by the schema itself
    arguments = overload_of(name)._schema.arguments
    assert [p.name for p in parameters] == [argument.name for argument in arguments]
    for parameter, argument in zip(parameters, arguments, strict=True):
        keyword_only = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert argument.kwarg_only or not keyword_only, f"{argument.name} is positional in the schema"
        if argument.has_default_value() and str(argument.real_type) not in ENUMS:
            assert parameter.default is not MISSING, f"{argument.name} has the default {argument.default_value!r}"
            assert _plain(parameter.default) == _plain(argument.default_value), argument.name


def _plain(default: object) -> object:
    """Schemas write `int[2] x=0` as [0, 0]."""
    if isinstance(default, list | tuple):
        return default[0] if default and len(set(default)) == 1 else tuple(default)
    return default


def test_every_rule_is_of_an_op_that_exists() -> None:
    for name in aten_rules():
        assert isinstance(overload_of(name), torch._ops.OpOverload), name


def test_a_second_rule_is_an_error() -> None:
    with pytest.raises(LoweringError, match=r"aten.add.Tensor has two rules.*\n  next: delete one of them"):
        registry.rule("aten.add.Tensor")(lambda ctx, self, other: self)


def test_near_misses_name_the_same_op_first() -> None:
    assert registry.near_misses("aten.add.NoSuchOverload") == ["aten.add.Scalar", "aten.add.Tensor"]
    assert registry.near_misses("aten._stack.default") == ["aten.stack.default"]
    assert registry.near_misses("aten.linalg_solve_ex.default") == ["aten._linalg_solve_ex.default"]
    assert "aten.adaptive_avg_pool1d.default" in registry.near_misses("aten.adaptive_avg_pool2d.default")


@pytest.mark.parametrize(
    "overload",
    [
        "mine.nothing_like_it.default",
        "mine.add.Tensor",  # the name of an op in another namespace
        "aten.isin.Tensor_Tensor",  # isinf, sin
        "aten.elu.default",  # relu, gelu
        "aten.prelu.default",
        "aten.nanmean.default",  # nanmedian
        "fxhlo.unknown.default",
    ],
)
def test_a_name_that_is_merely_alike_is_no_near_miss(overload: str) -> None:
    assert registry.near_misses(overload) == []


def test_decompositions_leave_rules_alone() -> None:
    from fxhlo.lowering.decompositions.table import VIEWS, decompositions

    taken_apart = {registry.overload_name(op) for op in decompositions() if op not in VIEWS}
    assert not taken_apart & set(registry.rules())
