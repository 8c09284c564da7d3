"""Takes a step's small inputs in two arrays, which the program takes apart on the device: two transfers in place of twenty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import fx

from ..base import Pass
from ..edit import add_placeholder, call
from ..packed import Packed, packed, per_request
from ..program import Argument, Program
from ..step_inputs import StepInput

aten = torch.ops.aten


@dataclass(frozen=True)
class PackInputs(Pass):
    """on: off leaves the step as it is. table: every input that a step may have. Wide inputs, and arguments that are not in the table, are
    left alone."""

    on: bool = False
    table: tuple[StepInput, ...] = ()

    def __call__(self, program: Program) -> Program:
        if not self.on:
            return program
        taken = {one.name for one in program.arguments if one.kind == "input"}
        arrays = packed({one.name: one for one in self.table if one.name in taken}.values())
        if not arrays:
            return program
        gone = {one.name for array in arrays for one in array.inputs}

        def edit(graph: fx.Graph) -> None:
            placeholders = [node for node in graph.nodes if node.op == "placeholder"]
            nodes = dict(zip((one.name for one in program.arguments), placeholders, strict=True))
            first = placeholders[-1].next
            for array in arrays:
                _take_apart(graph, array, nodes, first)
            for name in gone:
                graph.erase_node(nodes[name])

        kept = tuple(one for one in program.arguments if one.name not in gone)
        return replace(program.edited(edit), arguments=(*kept, *(Argument(one.name, "input") for one in arrays)))


def _take_apart(graph: fx.Graph, array: Packed, nodes: Mapping[str, fx.Node], first: fx.Node) -> None:
    """Adds the array, and each input as a part of it, before the node `first`. nodes: the placeholders of the inputs, by name."""
    examples = [nodes[one.name].meta["val"] for one in array.inputs]
    sizes = {
        size: extent
        for one, example in zip(array.inputs, examples, strict=True)
        for size, extent in zip(one.shape, example.shape, strict=True)
        if isinstance(size, str)
    }
    columns = array.columns(sizes)
    count = columns[-1][1]
    shape = (count, sizes["tokens"]) if array.per_token else (sizes["requests"] + 1, count)
    node = add_placeholder(graph, f"packed_{len(array.inputs)}", shape, torch.int32)
    with graph.inserting_before(first):
        for one, (begin, end) in zip(array.inputs, columns, strict=True):
            part = _row(graph, node, begin) if array.per_token else _columns(graph, node, one, begin, end)
            if one.dtype != "int32":
                part = call(graph, aten.view.dtype, (part, getattr(torch, one.dtype)))
            nodes[one.name].replace_all_uses_with(part)


def _row(graph: fx.Graph, node: fx.Node, index: int) -> fx.Node:
    return call(graph, aten.select.int, (node, 0, index))


def _columns(graph: fx.Graph, node: fx.Node, one: StepInput, begin: int, end: int) -> fx.Node:
    """The columns begin:end, in the shape of the input."""
    if not per_request(one) and one.shape != ("requests+1",):
        row = call(graph, aten.select.int, (node, 0, 0))
        return (
            call(graph, aten.slice.Tensor, (row, 0, begin, end))
            if one.shape
            else call(graph, aten.select.int, (row, 0, begin))
        )
    if len(one.shape) == 1:
        part = call(graph, aten.select.int, (node, 1, begin))
    else:
        part = call(graph, aten.slice.Tensor, (node, 1, begin, end))
    return call(graph, aten.slice.Tensor, (part, 0, 0, -1)) if per_request(one) else part
