"""Which ops can be lowered: the contract's check against the rules of this installation."""

from __future__ import annotations

from torch import fx

from ..passes import contract
from ..passes.program import Program
from .emit import SILENT
from .registry import find_rule, near_misses, overload_name


def supported(node: fx.Node) -> bool:
    """Whether emission takes this node."""
    name = overload_name(node.target)
    return name == "_operator.getitem" or name in SILENT or find_rule(node.target) is not None


def refusal(node: fx.Node) -> str | None:
    """Why no rule could ever take this node: its sizes, or the number it gives, are known only when it runs."""
    if node.meta.get("unbacked_bindings"):
        return "its result's shape, or the number it gives, depends on data; a compiled module's shapes are fixed: use a masked form such as torch.where"
    return None


def check(program: Program) -> None:
    """Raises ContractError listing every op without a rule."""
    contract.check(program, supported, overload_name, near_misses, refusal)
