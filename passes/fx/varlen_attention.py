"""Gives a layer's bidirectional attention the bounds of the requests: replaces `fxhlo.attention` by `fxhlo.varlen_attention`.

Such a layer keeps nothing between steps, and a step has whole requests. For one request, the program computes the same as before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ...runtime.core.errors import UnsupportedError
from ..base import Pass
from ..edit import call
from ..extension import Extension, extended
from ..program import Program, where
from ..step_inputs import BOUNDS, StepInput


@dataclass(frozen=True)
class VarlenAttention(Pass):
    """Leaves causal attention, which has a cache, and attention without a layer's name, which is of one sequence alone.

    Raises UnsupportedError for bidirectional attention with ALiBi.
    """

    @property
    def inputs(self) -> tuple[StepInput, ...]:
        return BOUNDS

    def __call__(self, program: Program) -> Program:
        if not _sites(program.graph):
            return program

        def edit(graph: fx.Graph, extension: Extension) -> None:
            (starts,) = extension.inputs(self.inputs, {})
            for node in _sites(graph):
                _replace(graph, node, starts)

        return extended(program, edit)


def _replace(graph: fx.Graph, node: fx.Node, starts: fx.Node) -> None:
    args: Any = node.args
    query, key, value, sinks, alibi_slopes = args
    if alibi_slopes is not None:
        raise UnsupportedError(
            "bidirectional attention with ALiBi has no kernel for several requests",
            where=where(node),
            next_step="serve this model on another platform of vLLM",
        )
    attributes = {name: entry for name, entry in node.kwargs.items() if name != "layer"}
    with graph.inserting_before(node):
        target = torch.ops.fxhlo.varlen_attention.default
        attended = call(graph, target, (query, key, value, starts, sinks), attributes, origin=node)
    node.replace_all_uses_with(attended)
    graph.erase_node(node)


def _sites(graph: fx.Graph) -> list[fx.Node]:
    """The bidirectional attention of the model's layers."""
    return [
        node
        for node in graph.nodes
        if node.target is torch.ops.fxhlo.attention.default
        and not node.kwargs.get("causal", True)
        and node.kwargs["layer"]
    ]
