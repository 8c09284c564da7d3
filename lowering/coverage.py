"""Which ops can be lowered: the contract's check against the rules of this installation."""

from __future__ import annotations

from torch import fx

from ..passes import contract
from ..passes.program import Program
from .emit import SILENT
from .left_out import SHAPE, reasons
from .registry import find_rule, near_misses, overload_name


def supported(node: fx.Node) -> bool:
    """Whether emission takes this node."""
    name = overload_name(node.target)
    return name == "_operator.getitem" or name in SILENT or find_rule(node.target) is not None


def refusal(node: fx.Node) -> str | None:
    """Why no rule could ever take this node: it is left out on purpose, or sizes are known only when it runs."""
    if not supported(node) and overload_name(node.target) in reasons():
        return reasons()[overload_name(node.target)]
    return SHAPE if node.meta.get("unbacked_bindings") else None


def check(program: Program) -> None:
    """Raises ContractError listing every op without a rule."""
    contract.check(program, supported, overload_name, near_misses, refusal)
