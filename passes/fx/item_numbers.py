"""Keeps numbers that are read from tensors (`.item()`, `int(t)`, `x[t]`) as the 0-d tensors that they are.

Comes in: a program in which `aten._local_scalar_dense` turns a tensor into a Python number, and ops that take that number. Goes
out: the same with the tensor in the number's place, wherever an op can take one: arithmetic, comparisons, filling, picking and
writing at an index, slices whose size is known. Guaranteed: what takes a number for a size, or in a place where no tensor fits,
stays as it is, and the contract refuses it with the reason.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..base import Pass
from ..edit import inline
from ..program import Program
from ..torch_private import pytree

aten = torch.ops.aten

READS = {aten._local_scalar_dense.default, aten.item.default}

# Python's arithmetic on numbers, as ops on 0-d tensors.
ARITHMETIC: dict[Any, Callable[..., Any]] = {
    operator.add: torch.add,
    operator.sub: torch.sub,
    operator.mul: torch.mul,
    operator.truediv: torch.true_divide,
    operator.floordiv: torch.floor_divide,
    operator.mod: torch.remainder,
    operator.neg: torch.neg,
    operator.pow: torch.pow,
    operator.lt: torch.lt,
    operator.le: torch.le,
    operator.gt: torch.gt,
    operator.ge: torch.ge,
    operator.eq: torch.eq,
    operator.ne: torch.ne,
    torch.sym_float: lambda number: number.to(torch.float32),
    torch.sym_int: lambda number: number.to(torch.int64),
    torch.sym_not: torch.logical_not,
    torch.sym_max: torch.maximum,
    torch.sym_min: torch.minimum,
}

# Ops of tensors and numbers whose other overload takes a 0-d tensor.
ELEMENTWISE = {
    aten.add, aten.sub, aten.mul, aten.div, aten.rsub, aten.remainder, aten.fmod, aten.floor_divide, aten.pow,
    aten.eq, aten.ne, aten.lt, aten.le, aten.gt, aten.ge, aten.clamp_min, aten.clamp_max, aten.clamp,
    aten.bitwise_and, aten.bitwise_or, aten.bitwise_xor, aten.fill, aten.masked_fill, aten.maximum, aten.minimum,
}  # fmt: skip


@dataclass(frozen=True)
class ItemNumbers(Pass):
    """A program that reads no numbers stays as it is."""

    def __call__(self, program: Program) -> Program:
        if not any(node.target in READS for node in program.graph.nodes):
            return program
        return program.edited(_edit)


def _edit(graph: fx.Graph) -> None:
    numbers: dict[fx.Node, fx.Node] = {}  # a node that is a number -> the 0-d tensor that holds it
    for node in list(graph.nodes):
        if node.target in READS:
            with graph.inserting_before(node):
                numbers[node] = inline(graph, _read, (node.args[0],), {}, origin=node)
        elif node.op == "output":
            node.args = (tuple(numbers.get(value, value) for value in node.args[0]),)
        elif node.op == "call_function" and any(operand in numbers for operand in node.all_input_nodes):
            _take(graph, node, numbers)


def _read(tensor: Tensor) -> Tensor:
    """Floats as float32 at least: what a Python number counts for beside integers."""
    dtype = torch.float32 if tensor.dtype in (torch.bfloat16, torch.float16) else tensor.dtype
    return tensor.reshape([]).to(dtype if dtype.is_floating_point or dtype is torch.bool else torch.int64)


def _take(graph: fx.Graph, node: fx.Node, numbers: dict[fx.Node, fx.Node]) -> None:
    """Writes `node` with tensors in the place of numbers, if it can be."""
    stands_for = _stand_in(node, numbers)
    if stands_for is None:
        return
    args = [fx.node.map_arg(argument, lambda one: numbers.get(one, one)) for argument in node.args]
    if any(not isinstance(one, fx.Node) and _holds_node(one) for one in args):
        return
    val = node.meta.get("val")
    with graph.inserting_before(node):
        taken = inline(graph, stands_for, args, dict(node.kwargs), origin=node)
        if isinstance(val, Tensor) and taken.meta["val"].dtype is not val.dtype:
            taken = inline(graph, lambda tensor: tensor.to(val.dtype), (taken,), {}, origin=node)
    if isinstance(val, Tensor):
        node.replace_all_uses_with(taken)
        graph.erase_node(node)
    else:
        numbers[node] = taken


def _holds_node(value: Any) -> bool:
    return any(isinstance(leaf, fx.Node) for leaf in pytree.tree_leaves(value))


def _stand_in(node: fx.Node, numbers: dict[fx.Node, fx.Node]) -> Callable[..., Any] | None:
    """A function of the node's arguments, numbers as 0-d tensors; None where there is none."""
    if node.target in ARITHMETIC:
        return ARITHMETIC[node.target]
    if any(operand in numbers for operand in node.kwargs.values()):
        return None
    packet = getattr(node.target, "overloadpacket", None)
    if packet in ELEMENTWISE:
        return packet
    if node.target is aten.scalar_tensor.default:
        return lambda number, **kwargs: number.to(node.meta["val"].dtype)
    if node.target is aten.full.default and not any(size in numbers for size in node.args[0]):  # type: ignore[union-attr, attr-defined]
        return lambda size, number, **kwargs: number.to(node.meta["val"].dtype).expand(size)
    if node.target in (aten.full_like.default, aten.new_full.default):
        size = node.args[1] if node.target is aten.new_full.default else node.args[0].meta["val"].shape  # type: ignore[union-attr, attr-defined, operator]
        return lambda like, *others, **kwargs: others[-1].to(node.meta["val"].dtype).expand(size)
    if node.target is aten.select.int:
        return _select
    if node.target is aten.select_scatter.default:
        return _select_scatter
    sizes = getattr(node.meta.get("val"), "shape", ())
    if node.target is aten.slice.Tensor and all(isinstance(size, int) for size in sizes):
        return lambda tensor, dim=0, start=None, end=None, step=1: _slice(tensor, dim, start, step, sizes[dim])
    return None


def _counted(index: Tensor, size: int) -> Tensor:
    return torch.where(index < 0, index + size, index)


def _select(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    return torch.index_select(tensor, dim, _counted(index, tensor.shape[dim]).reshape(1)).squeeze(dim)


def _select_scatter(tensor: Tensor, source: Tensor, dim: int, index: Tensor) -> Tensor:
    at = _counted(index, tensor.shape[dim]).reshape(1)
    return torch.index_copy(tensor, dim, at, source.unsqueeze(dim).to(tensor.dtype))


def _slice(tensor: Tensor, dim: int, start: Any, step: int, size: int) -> Tensor:
    """A start beyond the end leaves less than `size`, which the trace has excluded."""
    first = _counted(torch.as_tensor(0 if start is None else start), tensor.shape[dim])
    return torch.index_select(tensor, dim, first + torch.arange(size) * step)
