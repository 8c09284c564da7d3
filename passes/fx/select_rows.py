"""Moves the selection of rows that need logits up the graph, above ops that compute every row alike, so that the last
layer's MLP and the output projection compute only those rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import fx

from ..base import Pass
from ..edit import call
from ..program import Program
from ..rewrite import noted

aten = torch.ops.aten


@dataclass(frozen=True)
class SelectRows(Pass):
    """Moves every `fxhlo.select_rows` towards the inputs, as far as nobody reads the other rows."""

    def __call__(self, program: Program) -> Program:
        sunk = program.edited(_sink)
        return noted(sunk, self.name, _obstacles(sunk.graph))


def _sink(graph: fx.Graph) -> None:
    """One node at a time: where all users of a row-wise op are the same selection, select its operands instead."""
    todo = [node for node in graph.nodes if node.target is torch.ops.fxhlo.select_rows.default]
    while todo:
        selection = todo.pop()
        values, rows = selection.args
        assert isinstance(rows, fx.Node)
        if not isinstance(values, fx.Node) or values.op != "call_function":
            continue  # an argument: there is nothing above it
        if _obstacle(values, rows) is not None:
            continue
        with graph.inserting_before(selection):
            replacement, made = _rebuild(graph, values, rows, selection)
        for user in list(values.users):
            if user.target is torch.ops.fxhlo.select_rows.default:
                user.replace_all_uses_with(replacement)
                todo = [entry for entry in todo if entry is not user]
                graph.erase_node(user)
        graph.erase_node(values)
        todo.extend(made)


def _obstacles(graph: fx.Graph) -> dict[str, list[fx.Node]]:
    """Where the selections have stopped, by reason; one of an argument has nothing above it."""
    found: dict[str, list[fx.Node]] = {}
    for selection in graph.nodes:
        if selection.target is torch.ops.fxhlo.select_rows.default:
            values, rows = selection.args
            reason = _obstacle(values, rows) if values.op == "call_function" else None
            if reason is not None:
                found.setdefault(reason, []).append(values)
    return found


def _obstacle(node: fx.Node, rows: fx.Node) -> str | None:
    """Why the selection of `rows` cannot move above `node`, or None: every row is computed alike, and no other is wanted."""
    if any(user.target is not torch.ops.fxhlo.select_rows.default or user.args[1] is not rows for user in node.users):
        return f"other ops read all rows of {_name(node)}"
    return f"{_name(node)} is not known to compute each row alike" if _row_operands(node) is None else None


def _name(node: fx.Node) -> str:
    """The op's, or of the op of which the node is one result."""
    source = node.args[0] if node.target is getitem else node
    return str(source.target if isinstance(source, fx.Node) else node.target)


def _rebuild(graph: fx.Graph, node: fx.Node, rows: fx.Node, selection: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """The same op over selected operands; operands are selected once each."""
    assert callable(node.target)
    made: dict[fx.Node, fx.Node] = {}
    operands = _row_operands(node) or []

    def select(operand: fx.Node) -> fx.Node:
        if operand not in operands:
            return operand
        if operand not in made:
            existing = [
                u for u in operand.users if u.target is torch.ops.fxhlo.select_rows.default and u.args[1] is rows
            ]
            made[operand] = (
                existing[0]
                if existing and _before(existing[0], selection)
                else call(graph, torch.ops.fxhlo.select_rows.default, (operand, rows), origin=selection)
            )
        return made[operand]

    args: Any = fx.map_arg(node.args, select)
    if node.target in SHAPED:
        args = (args[0], [-1, *node.meta["val"].shape[1:]], *args[2:])  # -1: the number of selected rows
    return call(graph, node.target, args, dict(node.kwargs), origin=node), list(made.values())


def _before(one: fx.Node, other: fx.Node) -> bool:
    for node in one.graph.nodes:
        if node is one:
            return True
        if node is other:
            return False
    return False


ROW_WISE = {
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.neg.default, aten.pow.Tensor_Scalar,
    aten.rsqrt.default, aten.sigmoid.default, aten.silu.default, aten.gelu.default, aten.tanh.default, aten.relu.default,
    aten._to_copy.default, aten.exp.default, aten.mul.Scalar, aten.add.Scalar, torch.ops.prims.convert_element_type.default,
}  # fmt: skip
SHAPED = {aten.view.default, aten._unsafe_view.default, aten.reshape.default}


def _row_operands(node: fx.Node) -> list[fx.Node] | None:
    """The operands whose dimension 0 is the rows of `node`, or None where `node` is not row-wise."""
    val = node.meta.get("val")
    if not isinstance(val, torch.Tensor) or not val.ndim:
        return None
    tensors = [arg for arg in node.all_input_nodes if isinstance(arg.meta.get("val"), torch.Tensor)]
    args: Any = node.args
    kind: Callable[[fx.Node], bool] = lambda operand: _same_rows(operand.meta["val"], val)  # noqa: E731
    if node.target in ROW_WISE:
        with_rows = [t for t in tensors if t.meta["val"].ndim == val.ndim and kind(t)]
        others = [t for t in tensors if t not in with_rows]
        fine = all(t.meta["val"].ndim < val.ndim or _is_one(t.meta["val"].shape[0]) for t in others)
        return with_rows if with_rows and fine else None
    if node.target in (aten.mm.default, torch.ops.fxhlo.linear.default):
        return [args[0]] if args[0] is not args[1] else None
    if node.target is torch.ops.fxhlo.rms_norm.default:
        return [args[0]] if val.ndim > 1 else None
    if node.target is aten.addmm.default:
        return [args[1]] if args[0].meta["val"].ndim == 1 else None
    if node.target in (aten.mean.dim, aten.slice.Tensor):
        dims = args[1] if len(args) > 1 else 0
        dims = dims if isinstance(dims, list | tuple) else [dims]
        rank = args[0].meta["val"].ndim
        inner = bool(dims) and all(dim % rank != 0 for dim in dims)
        return [args[0]] if inner and val.ndim == rank else None
    if node.target in SHAPED:
        operand = args[0]
        if not all(isinstance(size, int) for size in val.shape[1:]):
            return None
        return [operand] if operand.meta["val"].ndim and kind(operand) else None
    return None


def _same_rows(one: torch.Tensor, other: torch.Tensor) -> bool:
    first, second = one.shape[0], other.shape[0]
    if isinstance(first, torch.SymInt) and isinstance(second, torch.SymInt):
        return first.node.expr == second.node.expr
    return False


def _is_one(size: object) -> bool:
    return isinstance(size, int) and size == 1
