"""Traces a function of tensors to a functional graph: no op in it mutates an operand.

torch.func.functionalize sees the ops that the function calls, not those inside of their decompositions: `isclose`, which fills a
tensor of its own, leaves in-place ops. So the graph is functionalized again until none is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import fx

from ..runtime.core.errors import FxhloError
from .torch_private import OpOverload, is_mutable, make_fx

Table = Mapping[OpOverload, Callable[..., Any]]

TURNS = 4
"""How often a graph is functionalized again at most; two are enough for all of torch's decompositions."""


def functional_graph(
    function: Callable[..., Any],
    operands: Sequence[Any],
    *,
    table: Table | None = None,
    tracing_mode: str = "symbolic",
    watched: AbstractContextManager[Any] | None = None,
) -> fx.GraphModule:
    """The ATen graph of `function(*operands)`, fake or real tensors. table: op -> decomposition. watched: entered while the function runs.

    An operand that the function mutates is written by a last `copy_` to its placeholder, the one mutation that is left. Raises
    FxhloError for an in-place op that torch has no functional form of.
    """
    with watched or nullcontext():
        graph_module = _traced(function, operands, table, tracing_mode)
    for _ in range(TURNS):
        if not _mutations(graph_module.graph):
            return graph_module
        graph_module = _traced(fx.Interpreter(graph_module).run, operands, table, tracing_mode)
    left = sorted({str(node.target) for node in _mutations(graph_module.graph)})
    if left:
        raise FxhloError(
            f"{', '.join(left)} mutate their operands, and torch has no functional form of them",
            next_step="write the model with the ops' functional forms",
        )
    return graph_module


def _traced(
    function: Callable[..., Any], operands: Sequence[Any], table: Table | None, tracing_mode: str
) -> fx.GraphModule:
    functional = torch.func.functionalize(lambda *values: function(*values), remove="mutations")
    with fx.traceback.preserve_node_meta():
        return make_fx(functional, tracing_mode=tracing_mode, decomposition_table=dict(table or {}))(*operands)  # type: ignore[arg-type]


def _mutations(graph: fx.Graph) -> list[fx.Node]:
    """Calls that mutate an operand, except for copies to placeholders."""
    return [
        node
        for node in graph.nodes
        if is_mutable(node.target)
        and not (
            node.target is torch.ops.aten.copy_.default
            and isinstance(node.args[0], fx.Node)
            and node.args[0].op == "placeholder"
        )
    ]
