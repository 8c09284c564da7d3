"""The rules: one per exact ATen overload, registered by a decorator or as a row of a table.

A rule is `rule(ctx, *operands, **attributes)`. Its parameters have the names, order and defaults of the ATen schema. Tensors are passed
as `Value`, other arguments as Python scalars, dtypes, lists or None, with symbolic sizes bound. It returns one Value, or a sequence of
them in the order of the schema's returns.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TypeVar

from ..passes.torch_private import HigherOrderOperator, OpOverload
from .errors import LoweringError

Rule = Callable[..., object]
SomeRule = TypeVar("SomeRule", bound=Rule)

_RULES: dict[str, Rule] = {}


def rule(*overloads: str) -> Callable[[SomeRule], SomeRule]:
    """Registers a rule for overloads such as "aten.add.Tensor". Raises LoweringError for an overload that has one already."""

    def register(function: SomeRule) -> SomeRule:
        for overload in overloads:
            if overload in _RULES:
                raise LoweringError(
                    f"{overload} has two rules: {_RULES[overload].__module__}.{_RULES[overload].__qualname__} "
                    f"and {function.__module__}.{function.__qualname__}",
                    next_step="delete one of them",
                )
            _RULES[overload] = function
        return function

    return register


@cache
def load_rules() -> None:
    """Imports every module of lowering/ops; each registers its rules at import."""
    package = import_module(f"{__package__}.ops")
    for module in iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")


def rules() -> dict[str, Rule]:
    """All rules by overload name."""
    load_rules()
    return _RULES


def overload_name(target: object) -> str:
    """The name of an FX node's target: "aten.add.Tensor" for torch.ops.aten.add.Tensor, else its qualified name."""
    if isinstance(target, OpOverload):
        return str(target)
    if isinstance(target, HigherOrderOperator):
        return f"higher_order.{target.name()}"
    return f"{getattr(target, '__module__', '?')}.{getattr(target, '__qualname__', target)}"


def find_rule(target: object) -> Rule | None:
    """Returns the rule for an FX node's target, or None."""
    return rules().get(overload_name(target))


SIMILAR = 0.9
"""Minimum similarity (difflib's ratio) for two names to be variants of one op: `_stack` and `stack`, not `isin` and `isinf`."""


def near_misses(overload: str) -> list[str]:
    """Suggestions for an op without a rule: its other overloads that have one; else ops of its namespace with nearly the same name.

    Empty where there is none: a merely similar name does not help.
    """
    namespace, _, op = overload.rpartition(".")[0].partition(".")
    overloads: dict[str, list[str]] = {}
    for name in rules():
        if name.startswith(f"{namespace}."):
            overloads.setdefault(name.rpartition(".")[0].removeprefix(f"{namespace}."), []).append(name)
    near = [op] if op in overloads else get_close_matches(op, overloads, n=3, cutoff=SIMILAR)
    return [name for one in near for name in sorted(overloads[one])]
