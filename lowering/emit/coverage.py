"""Checks which ops of a Program can be lowered: the contract, against the rules of this installation."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from ...passes import contract
from ...passes.contract import SILENT, Missing
from ...passes.program import Program
from ...runtime.core.errors import FxhloError
from ..left_out import SHAPE, reasons
from ..registry import find_rule, near_misses, overload_name
from .emit import refused


def supported(node: fx.Node) -> bool:
    """Whether the node has a rule or needs none."""
    name = overload_name(node.target)
    return name == "_operator.getitem" or name in SILENT or find_rule(node.target) is not None


def refusal(node: fx.Node) -> str | None:
    """Why no rule can lower this node: the op is left out on purpose, or its sizes depend on data; None where one can."""
    if not supported(node) and overload_name(node.target) in reasons():
        return reasons()[overload_name(node.target)]
    return SHAPE if node.meta.get("unbacked_bindings") else None


def everything_missing(program: Program, bindings: Mapping[str, int] | None = None) -> tuple[Missing, ...]:
    """Returns every op without a rule and every op whose rule refuses the call, the most frequent first."""
    return contract.by_count(_with_refusals(program, bindings, _without_rule(program)))


def check(program: Program, bindings: Mapping[str, int] | None = None) -> None:
    """Raises ContractError with everything that cannot be lowered if an op has no rule."""
    if without_rule := _without_rule(program):
        raise contract.cannot_be_lowered(_with_refusals(program, bindings, without_rule))


def _without_rule(program: Program) -> tuple[Missing, ...]:
    return contract.missing_ops(program, supported, overload_name, near_misses, refusal)


def _with_refusals(
    program: Program, bindings: Mapping[str, int] | None, without_rule: tuple[Missing, ...]
) -> tuple[Missing, ...]:
    named = {one.overload for one in without_rule}
    try:
        return (*without_rule, *(one for one in refused(program, bindings) if one.overload not in named))
    except FxhloError:  # sizes of the signature depend on data, because of an op that is listed already
        if not without_rule:
            raise
        return without_rule
