"""Moves the selection of rows that need logits up the graph, above ops that compute every row alike, so that the last
layer's MLP, or its router and experts, and the output projection compute only those rows."""

from __future__ import annotations

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
    todo = [node for node in graph.nodes if _is_selection(node)]
    while todo:
        values, rows = todo.pop().args
        assert isinstance(rows, fx.Node)
        if not isinstance(values, fx.Node) or values.op != "call_function":
            continue  # an argument: there is nothing above it
        if _obstacle(values, rows) is not None:
            continue
        source, results = _source(values)
        selections = [user for result in results for user in result.users]
        with graph.inserting_before(min(selections)):
            replacement, made = _rebuild(graph, values, rows, min(selections))
            for result in results:
                instead = replacement if result is source else call(graph, getitem, (replacement, result.args[1]))
                for user in list(result.users):
                    user.replace_all_uses_with(instead)
        for dead in dict.fromkeys([*selections, *results, source]):
            graph.erase_node(dead)
        todo = [entry for entry in todo if entry not in selections] + made


def _is_selection(node: fx.Node) -> bool:
    return node.target is torch.ops.fxhlo.select_rows.default


def _source(node: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """The op that computes the node, and the nodes of all its results: a `topk` has two, and the node may be one of them."""
    if node.target is not getitem:
        return node, [node]
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source, list(source.users)


def _obstacles(graph: fx.Graph) -> dict[str, list[fx.Node]]:
    """Where the selections have stopped, by reason; one of an argument has nothing above it."""
    found: dict[str, list[fx.Node]] = {}
    for selection in graph.nodes:
        if _is_selection(selection):
            values, rows = selection.args
            reason = _obstacle(values, rows) if values.op == "call_function" else None
            if reason is not None:
                found.setdefault(reason, []).append(values)
    return found


def _obstacle(node: fx.Node, rows: fx.Node) -> str | None:
    """Why the selection of `rows` cannot move above `node`, or None: every row is computed alike, and no other is wanted."""
    source, results = _source(node)
    if any(not _is_selection(user) or user.args[1] is not rows for result in results for user in result.users):
        return f"other ops read all rows of {source.target}"
    return f"{source.target} is not known to compute each row alike" if _row_operands(node) is None else None


def _rebuild(graph: fx.Graph, result: fx.Node, rows: fx.Node, first: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """The op of `result` over selected operands, before the node `first`; operands are selected once each."""
    node, _ = _source(result)
    operands = _row_operands(result)
    assert callable(node.target) and operands
    made: dict[fx.Node, fx.Node] = {}

    def select(operand: fx.Node) -> fx.Node:
        if operand not in operands:
            return operand
        if operand not in made:
            before = [u for u in operand.users if _is_selection(u) and u.args[1] is rows and u < first]
            made[operand] = (
                before[0] if before else call(graph, torch.ops.fxhlo.select_rows.default, (operand, rows), origin=first)
            )
        return made[operand]

    args: Any = fx.map_arg(node.args, select)
    if node.target in SHAPED:
        args = (args[0], [-1, *node.meta["val"].shape[1:]], *args[2:])  # -1: the number of selected rows
    return call(graph, node.target, args, dict(node.kwargs), origin=node), list(made.values())


ELEMENTWISE = {
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.neg.default, aten.pow.Tensor_Scalar,
    aten.rsqrt.default, aten.sqrt.default, aten.sigmoid.default, aten.silu.default, aten.gelu.default, aten.tanh.default,
    aten.relu.default, aten.softplus.default, aten.exp.default, aten.log1p.default, aten.clamp.default, aten.clamp.Tensor,
    aten.clamp_min.default, aten.clamp_max.default, aten.minimum.default,
    aten.maximum.default, aten.abs.default, aten.reciprocal.default, aten._to_copy.default, aten.clone.default,
    aten.mul.Scalar, aten.add.Scalar, aten.sub.Scalar, aten.div.Scalar, aten.where.self, aten.masked_fill.Scalar,
    aten.eq.Tensor, aten.ne.Tensor, aten.lt.Tensor, aten.le.Tensor, aten.gt.Tensor, aten.ge.Tensor, aten.eq.Scalar,
    aten.ne.Scalar, aten.lt.Scalar, aten.le.Scalar, aten.gt.Scalar, aten.ge.Scalar, aten.bitwise_not.default,
    aten.logical_not.default, aten.bitwise_and.Tensor, aten.bitwise_or.Tensor, torch.ops.prims.convert_element_type.default,
}  # fmt: skip
"""Ops that broadcast."""
ALONG: dict[Any, int] = {
    aten.mean.dim: 1, aten.sum.dim_IntList: 1, aten.amax.default: 1, aten.amin.default: 1, aten.max.dim: 1, aten.min.dim: 1,
    aten._softmax.default: 1, aten.cumsum.default: 1, aten.sort.default: 1, aten.topk.default: 2, aten.slice.Tensor: 1,
    aten.select.int: 1, aten.gather.default: 1, aten.scatter.value: 1, aten.scatter.src: 1, aten.cat.default: 1,
    aten.squeeze.dim: 1, aten.unsqueeze.default: 1, aten.split.Tensor: 2, aten.split_with_sizes.default: 2,
}  # fmt: skip
"""Ops along dimensions, and the position of the argument that names them; they compute rows alike where these are inner ones."""
LAST = (aten.topk.default, aten.sort.default)
"""Those whose dimension is the last by default; of the others it is the first."""
ROWS = {
    "aten.mm.default": (0,), "aten.addmm.default": (1,), "fxhlo.linear.default": (0,), "fxhlo.rms_norm.default": (0,),
    "fxhlo.moe.default": (0, 3, 4), "aten.native_layer_norm.default": (0,),
}  # fmt: skip
"""Ops over matrices of rows, and the positions of these; other operands are weights. By name: ours are made at the first use."""
SHAPED = {aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.expand.default}


def _row_operands(node: fx.Node) -> list[fx.Node] | None:
    """The operands whose dimension 0 is the rows of `node`, or None where `node` is not row-wise."""
    val = node.meta.get("val")
    if not isinstance(val, torch.Tensor) or not val.ndim:
        return None
    source, _ = _source(node)
    args: Any = source.args
    tensors = [arg for arg in source.all_input_nodes if isinstance(arg.meta.get("val"), torch.Tensor)]
    with_rows = [tensor for tensor in tensors if _same_rows(tensor.meta["val"], val)]
    if source.target in ELEMENTWISE:
        with_rows = [tensor for tensor in with_rows if tensor.meta["val"].ndim == val.ndim]
        others = [tensor.meta["val"] for tensor in tensors if tensor not in with_rows]
        fine = all(one.ndim < val.ndim or _is_one(one.shape[0]) for one in others)
        return with_rows if with_rows and fine else None
    if str(source.target) in ROWS:
        operands = [args[position] for position in ROWS[str(source.target)]]
        weights = [tensor for tensor in tensors if tensor not in operands and tensor in with_rows]
        fine = val.ndim > 1 and not weights and all(operand in with_rows for operand in operands)
        return list(dict.fromkeys(operands)) if fine and args.count(operands[0]) == 1 else None
    if source.target in ALONG:
        return with_rows if with_rows == tensors and _is_inner(source, with_rows) else None
    if source.target in SHAPED and all(isinstance(size, int) for size in val.shape[1:]):
        return with_rows or None
    return None


def _is_inner(node: fx.Node, operands: list[fx.Node]) -> bool:
    """Whether all dimensions along which the op works are other than the first."""
    position = ALONG[node.target]
    dims: Any = node.args[position] if len(node.args) > position else -1 if node.target in LAST else 0
    rank = operands[0].meta["val"].ndim + (node.target is aten.unsqueeze.default)
    dims = dims if isinstance(dims, list | tuple) else [dims]
    return bool(dims) and all(isinstance(dim, int) and dim % rank != 0 for dim in dims)


def _same_rows(one: torch.Tensor, other: torch.Tensor) -> bool:
    if not one.ndim:
        return False
    first, second = one.shape[0], other.shape[0]
    if isinstance(first, torch.SymInt) and isinstance(second, torch.SymInt):
        return first.node.expr == second.node.expr
    return False


def _is_one(size: object) -> bool:
    return isinstance(size, int) and size == 1
