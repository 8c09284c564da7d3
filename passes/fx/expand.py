"""Replaces ops by what a function makes of them: how vLLM's IR ops become ATen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import getitem
from typing import Any

from torch import fx

from ..base import Pass
from ..edit import inline
from ..program import Program


@dataclass(frozen=True)
class Expand(Pass):
    """table: for each op (an OpOverload) the function that computes the same, written in torch."""

    table: Mapping[Any, Callable[..., Any]]

    def __call__(self, program: Program) -> Program:
        return program.edited(self._edit)

    def _edit(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if node.op != "call_function" or node.target not in self.table:
                continue
            with graph.inserting_before(node):
                outputs = inline(graph, self.table[node.target], node.args, dict(node.kwargs), origin=node)
            if isinstance(outputs, fx.Node):
                node.replace_all_uses_with(outputs)
            else:
                for user in list(node.users):
                    assert user.target is getitem, user
                    user.replace_all_uses_with(outputs[user.args[1]])
                    graph.erase_node(user)
            graph.erase_node(node)
