"""A rewrite as data: a pattern, a guard that gives a reason where it declines, and a replacement.

Comes in: a Program. Goes out: the Program with every match replaced, and a note for each reason why one was not
(`lower-model --explain` shows them, with the user's line).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from torch import fx

from .program import Note, Program, where

Match = TypeVar("Match")


@dataclass(frozen=True)
class Rewrite(Generic[Match]):
    """Replaces single nodes.

    name: for notes. pattern: what of the graph the node stands for, or None where the rewrite is not about it. guard: None, or why this
    match stays as it is (one clause, lower case). replacement: makes the node that takes the place of the matched one;
    the insertion point is before that.
    """

    name: str
    pattern: Callable[[fx.Node], Match | None]
    guard: Callable[[Match], str | None]
    replacement: Callable[[fx.Graph, fx.Node, Match], fx.Node]

    def __call__(self, program: Program) -> Program:
        """The Program after the rewrite. Declined matches are noted, not touched."""
        declined: dict[str, list[fx.Node]] = {}

        def edit(graph: fx.Graph) -> None:
            for node in list(graph.nodes):
                match = self.pattern(node) if node.op == "call_function" else None
                if match is None:
                    continue
                reason = self.guard(match)
                if reason is not None:
                    declined.setdefault(reason, []).append(node)
                    continue
                with graph.inserting_before(node):
                    new = self.replacement(graph, node, match)
                node.replace_all_uses_with(new)
                graph.erase_node(node)

        return noted(program.edited(edit), self.name, declined)


def noted(program: Program, name: str, declined: Mapping[str, Sequence[fx.Node]]) -> Program:
    """The Program with a note for each reason why the rewrite `name` left nodes as they were."""
    notes = tuple(Note(name, reason, len(nodes), where(nodes[0])) for reason, nodes in declined.items())
    return replace(program, notes=(*program.notes, *notes)) if notes else program
