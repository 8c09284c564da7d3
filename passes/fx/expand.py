"""Replaces ops by the ops that a torch function traces to: this is how vLLM's IR ops become ATen ops or our kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import getitem
from typing import Any

from torch import fx

from ..base import Pass
from ..edit import Traces, inline, values
from ..program import Program
from ..rewrite import noted

Function = Callable[..., Any]
"""Computes in torch what an op does, with the op's arguments."""


@dataclass(frozen=True)
class Preferred:
    """`function`, unless `guard` (called with the op's arguments, fake tensors) gives a reason for `otherwise`."""

    function: Function
    guard: Callable[..., str | None]
    otherwise: Function


@dataclass(frozen=True)
class Expand(Pass):
    """table: for each op (an OpOverload) the function that computes the same, written in torch."""

    table: Mapping[Any, Function | Preferred]

    def __call__(self, program: Program) -> Program:
        declined: dict[str, list[fx.Node]] = {}
        return noted(program.edited(lambda graph: self._edit(graph, declined)), self.name, declined)

    def _function(self, node: fx.Node, declined: dict[str, list[fx.Node]]) -> Function:
        entry = self.table[node.target]
        if not isinstance(entry, Preferred):
            return entry
        reason = entry.guard(*values(node.args), **values(node.kwargs))
        if reason is None:
            return entry.function
        declined.setdefault(reason, []).append(node)
        return entry.otherwise

    def _edit(self, graph: fx.Graph, declined: dict[str, list[fx.Node]]) -> None:
        traces: Traces = {}
        for node in list(graph.nodes):
            if node.op != "call_function" or node.target not in self.table:
                continue
            with graph.inserting_before(node):
                outputs = inline(
                    graph, self._function(node, declined), node.args, dict(node.kwargs), origin=node, traces=traces
                )
            if isinstance(outputs, fx.Node):
                node.replace_all_uses_with(outputs)
            else:
                for user in list(node.users):
                    assert user.target is getitem, user
                    user.replace_all_uses_with(outputs[user.args[1]])
                    graph.erase_node(user)
            graph.erase_node(node)
