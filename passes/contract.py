"""The contract between passes and emission: which ops a finished Program may hold.

Comes in: a Program and which ops have rules. Goes out: all violations at once, in a `ContractError`: ops without a rule, each with its
count, the user's file and line, and near misses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import fx

from ..runtime.core.errors import FxhloError
from .program import Program, where

SILENT = frozenset(
    {
        "aten._assert_scalar.default",
        "aten._assert_async.msg",
        "aten._assert_tensor_metadata.default",
        "aten.sym_constrain_range.default",
        "aten.sym_constrain_range_for_size.default",
        "aten._linalg_check_errors.default",
    }
)
"""Ops that only assert: capture or the binding of sizes has made their checks, and nothing is emitted for them."""


@dataclass(frozen=True)
class Missing:
    """An op that cannot be lowered: how often it is called and where first."""

    overload: str
    count: int
    where: str | None
    near_misses: tuple[str, ...] = ()
    reason: str | None = None
    """Why there is no rule, such as a result whose shape depends on data, or why the rule refuses this call."""

    def __str__(self) -> str:
        text = f"{self.overload} ({self.count}x)"
        if self.where:
            text += f" at {self.where}"
        if self.reason:
            text += f": {self.reason}"
        elif self.near_misses:
            text += f"; there are rules for {', '.join(self.near_misses)}"
        return text


NEXT_STEP = "add a rule as docs/add_an_op.md shows, or replace the op in the model"
CHANGE_THE_MODEL = "change the model at these lines as the reasons say"


class ContractError(FxhloError):
    """The graph holds ops that cannot be emitted; `missing` lists them all."""

    def __init__(
        self, message: str, *, missing: tuple[Missing, ...] = (), where: str | None = None, next_step: str | None = None
    ) -> None:
        super().__init__(message, where=where, next_step=next_step)
        self.missing = missing


def is_symbolic(node: fx.Node) -> bool:
    """Whether the node computes a scalar such as a size: emission binds it to a number, it needs no rule."""
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymBool | torch.SymFloat | int | float | bool)


def _all_nodes(module: torch.nn.Module) -> Iterator[fx.Node]:
    """The nodes of a graph, then those of its regions of control flow."""
    if isinstance(module, fx.GraphModule):
        yield from module.graph.nodes
        regions = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
        for name, region in module.named_children():
            if name in regions:
                yield from _all_nodes(region)


def missing_ops(
    program: Program,
    supported: Callable[[fx.Node], bool],
    overload: Callable[[object], str],
    near: Callable[[str], Iterable[str]],
    refusal: Callable[[fx.Node], str | None] = lambda node: None,
) -> tuple[Missing, ...]:
    """Every op of the graph that is not `supported`, or for which `refusal` returns a reason."""
    found: dict[tuple[str, str | None], list[fx.Node]] = {}
    for node in _all_nodes(program.module):
        if node.op != "call_function":
            continue
        reason = refusal(node)
        if reason or (not is_symbolic(node) and not supported(node)):
            found.setdefault((overload(node.target), reason), []).append(node)
    return tuple(
        Missing(name, len(nodes), where(nodes[0]), () if reason else tuple(near(name)), reason)
        for (name, reason), nodes in found.items()
    )


def by_count(missing: Iterable[Missing]) -> tuple[Missing, ...]:
    """The most frequent first."""
    return tuple(sorted(missing, key=lambda one: (-one.count, one.overload)))


def next_step_for(missing: Iterable[Missing]) -> str:
    """What to do: add a rule, or where there is a reason against one, change the model."""
    reasons = [one.reason is not None for one in missing]
    if all(reasons):
        return CHANGE_THE_MODEL
    return f"{NEXT_STEP}; where a reason stands, change the model" if any(reasons) else NEXT_STEP


def cannot_be_lowered(missing: Iterable[Missing], next_step: str | None = None) -> ContractError:
    """The error that lists all of them, the most frequent first."""
    missing = by_count(missing)
    return ContractError(
        f"{len(missing)} kinds of ops cannot be lowered:\n" + "\n".join(f"  {entry}" for entry in missing),
        missing=missing,
        where=missing[0].where,
        next_step=next_step or next_step_for(missing),
    )
