"""silu(gate) * up over the two halves of a row becomes `fxhlo.silu_and_mul`, which reads each value once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from ..base import Pass
from ..edit import call
from ..program import Program

aten = torch.ops.aten


@dataclass(frozen=True)
class SiluAndMul(Pass):
    """mul(silu(x[:, :n]), x[:, n:]) where x is a matrix of 2 n columns."""

    def __call__(self, program: Program) -> Program:
        return program.edited(_rewrite)


def _rewrite(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        source = _source(node)
        if source is None:
            continue
        with graph.inserting_before(node):
            fused = call(graph, torch.ops.fxhlo.silu_and_mul.default, (source,), origin=node)
        node.replace_all_uses_with(fused)
        graph.erase_node(node)
    graph.eliminate_dead_code()


def _source(node: fx.Node) -> fx.Node | None:
    """The matrix whose halves `node` multiplies, one of them through silu."""
    if node.target is not aten.mul.Tensor:
        return None
    gate, up = node.args
    if not isinstance(gate, fx.Node) or gate.target is not aten.silu.default:
        return None
    first, second = _half(gate.args[0]), _half(up)
    if first is None or second is None or first[0] is not second[0]:
        return None
    return first[0] if (first[1], second[1]) == (0, 1) else None


def _half(node: object) -> tuple[fx.Node, int] | None:
    """(matrix, 0 or 1) where `node` is the first or the second half of a matrix's columns."""
    if not isinstance(node, fx.Node) or node.target is not aten.slice.Tensor or len(node.args) != 4 or node.kwargs:
        return None
    source, dim, start, end = node.args
    if not isinstance(source, fx.Node) or not all(isinstance(number, int) for number in (dim, start, end)):
        return None
    val = source.meta["val"]
    columns = val.shape[-1]
    if val.ndim != 2 or dim not in (1, -1) or not isinstance(columns, int) or columns % 2:
        return None
    bounds = (start, min(end, columns))  # type: ignore[operator, type-var]  # they are numbers
    halves = {(0, columns // 2): 0, (columns // 2, columns): 1}
    return (source, halves[bounds]) if bounds in halves else None  # type: ignore[index]
