"""Keeps scalars that are read from tensors (`.item()`, `int(t)`, `x[t]`) as 0-d tensors.

Comes in: a program in which `aten._local_scalar_dense` turns a tensor into a Python scalar, and ops that take the scalar. Goes
out: the same with a 0-d tensor as the operand, wherever an op has a form that takes one: arithmetic, comparisons, fills, selects
and writes at an index, slices whose size is known. Guaranteed: an op that takes the scalar as a size, or that has no such form, is
left as it is, and the contract refuses it with the reason.
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

ARITHMETIC: dict[Callable[..., Any], Callable[..., Tensor]] = {
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
"""Python's arithmetic on scalars -> the op on 0-d tensors."""

ELEMENTWISE = {
    aten.add, aten.sub, aten.mul, aten.div, aten.rsub, aten.remainder, aten.fmod, aten.floor_divide, aten.pow,
    aten.eq, aten.ne, aten.lt, aten.le, aten.gt, aten.ge, aten.clamp_min, aten.clamp_max, aten.clamp,
    aten.bitwise_and, aten.bitwise_or, aten.bitwise_xor, aten.fill, aten.masked_fill, aten.maximum, aten.minimum,
}  # fmt: skip
"""Ops with an overload that takes a 0-d tensor for the scalar."""


@dataclass(frozen=True)
class ItemNumbers(Pass):
    """Keeps scalars that are read from tensors as 0-d tensors. A program that reads none is returned as it is."""

    def __call__(self, program: Program) -> Program:
        if not any(node.target in READS for node in program.graph.nodes):
            return program
        return program.edited(_edit)


def _edit(graph: fx.Graph) -> None:
    numbers: dict[fx.Node, fx.Node] = {}  # a scalar -> the 0-d tensor that has its value
    for node in list(graph.nodes):
        if node.target in READS:
            with graph.inserting_before(node):
                numbers[node] = inline(graph, _read, (node.args[0],), {}, origin=node)
        elif node.op == "output":
            node.args = (tuple(numbers.get(value, value) for value in node.args[0]),)
        elif node.op == "call_function" and any(operand in numbers for operand in node.all_input_nodes):
            _take_tensors(graph, node, numbers)


def _read(tensor: Tensor) -> Tensor:
    """0-d, in the dtype that a Python scalar promotes as: float32 or wider for floats, int64 for integers."""
    dtype = torch.float32 if tensor.dtype in (torch.bfloat16, torch.float16) else tensor.dtype
    return tensor.reshape([]).to(dtype if dtype.is_floating_point or dtype is torch.bool else torch.int64)


def _take_tensors(graph: fx.Graph, node: fx.Node, numbers: dict[fx.Node, fx.Node]) -> None:
    """Replaces `node` by its form that takes tensors for scalars, where it has one."""
    form = _tensor_form(node, numbers)
    if form is None:
        return
    args = [fx.node.map_arg(argument, lambda one: numbers.get(one, one)) for argument in node.args]
    if any(not isinstance(one, fx.Node) and _holds_node(one) for one in args):
        return
    val = node.meta.get("val")
    with graph.inserting_before(node):
        taken = inline(graph, form, args, dict(node.kwargs), origin=node)
        if isinstance(val, Tensor) and taken.meta["val"].dtype is not val.dtype:
            taken = inline(graph, lambda tensor: tensor.to(val.dtype), (taken,), {}, origin=node)
    if isinstance(val, Tensor):
        node.replace_all_uses_with(taken)
        graph.erase_node(node)
    else:
        numbers[node] = taken


def _holds_node(value: object) -> bool:
    return any(isinstance(leaf, fx.Node) for leaf in pytree.tree_leaves(value))


def _tensor_form(node: fx.Node, numbers: dict[fx.Node, fx.Node]) -> Callable[..., Any] | None:
    """The op as a function of the node's arguments with 0-d tensors for scalars; None where no such form exists."""
    if node.target in ARITHMETIC:
        return ARITHMETIC[node.target]
    if any(operand in numbers for operand in node.kwargs.values()):
        return None
    packet = getattr(node.target, "overloadpacket", None)
    if packet in ELEMENTWISE:
        return packet
    if node.target is aten.scalar_tensor.default:
        return lambda number, **kwargs: number.to(node.meta["val"].dtype)
    if node.target is aten.full.default and not any(size in numbers for size in node.args[0]):  # type: ignore[union-attr]
        return lambda size, number, **kwargs: number.to(node.meta["val"].dtype).expand(size)
    if node.target in (aten.full_like.default, aten.new_full.default):
        size = node.args[1] if node.target is aten.new_full.default else node.args[0].meta["val"].shape  # type: ignore[union-attr]
        return lambda like, *others, **kwargs: others[-1].to(node.meta["val"].dtype).expand(size)
    if node.target is aten.select.int:
        return _select
    if node.target is aten.select_scatter.default:
        return _select_scatter
    sizes = getattr(node.meta.get("val"), "shape", ())
    if node.target is aten.slice.Tensor and all(isinstance(size, int) for size in sizes):
        return lambda tensor, dim=0, start=None, end=None, step=1: _slice(tensor, dim, start, step, sizes[dim])
    return None


def _from_start(index: Tensor, size: int) -> Tensor:
    """The index, a negative one counted from the end."""
    return torch.where(index < 0, index + size, index)


def _select(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    return torch.index_select(tensor, dim, _from_start(index, tensor.shape[dim]).reshape(1)).squeeze(dim)


def _select_scatter(tensor: Tensor, source: Tensor, dim: int, index: Tensor) -> Tensor:
    at = _from_start(index, tensor.shape[dim]).reshape(1)
    return torch.index_copy(tensor, dim, at, source.unsqueeze(dim).to(tensor.dtype))


def _slice(tensor: Tensor, dim: int, start: Tensor | int | None, step: int, size: int) -> Tensor:
    """`size` elements from `start`; capture has excluded a start that leaves fewer."""
    first = _from_start(torch.as_tensor(0 if start is None else start), tensor.shape[dim])
    return torch.index_select(tensor, dim, first + torch.arange(size) * step)
