"""A Program's graph as something to compare."""

from __future__ import annotations

import torch
from torch import fx

from fxhlo.passes.contract import is_symbolic
from fxhlo.passes.program import Program, module_path, source_of


def written(program: Program) -> list[object]:
    """The graph, with nodes by their place and sizes by their expression: which tensor a size is read from does not matter."""
    nodes = [node for node in program.graph.nodes if not is_symbolic(node)]
    places = {node: place for place, node in enumerate(nodes)}

    def named(node: fx.Node) -> str:
        return f"%{places[node]}" if node in places else str(node.meta["val"])

    def described(node: fx.Node) -> object:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), named)
        val = node.meta.get("val")
        type_ = (val.dtype, val.shape, val.stride()) if isinstance(val, torch.Tensor) else val
        return node.op, str(node.target), str(args), str(kwargs), str(type_), module_path(node), source_of(node)

    return [
        *map(described, nodes),
        program.arguments,
        program.results,
        [str(guard.expression) for guard in program.guards],
    ]
