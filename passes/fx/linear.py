"""Products with a transposed weight become `fxhlo.linear`, which takes the weight as it lies in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from ..base import Pass
from ..edit import call
from ..program import Program

aten = torch.ops.aten
TRANSPOSES = {aten.t.default, aten.permute.default, aten.transpose.int, aten.numpy_T.default}


@dataclass(frozen=True)
class Linear(Pass):
    """mm(x, w.T) and addmm(b, x, w.T), where w is an argument of the program."""

    def __call__(self, program: Program) -> Program:
        return program.edited(_rewrite)


def _rewrite(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.target is aten.mm.default:
            values, right, bias = node.args[0], node.args[1], None
        elif node.target is aten.addmm.default and not node.kwargs and node.args[0].meta["val"].ndim == 1:
            bias, values, right = node.args
        else:
            continue
        weight = _transposed(right)
        if weight is None or (bias is not None and bias.meta["val"].shape[0] != weight.meta["val"].shape[0]):
            continue
        with graph.inserting_before(node):
            linear = call(graph, torch.ops.fxhlo.linear.default, (values, weight, bias), origin=node)
        node.replace_all_uses_with(linear)
        graph.erase_node(node)


def _transposed(node: object) -> fx.Node | None:
    """The argument of the program whose transpose `node` is."""
    if not isinstance(node, fx.Node) or node.target not in TRANSPOSES:
        return None
    source = node.args[0]
    return (
        source if isinstance(source, fx.Node) and source.op == "placeholder" and source.meta["val"].ndim == 2 else None
    )
