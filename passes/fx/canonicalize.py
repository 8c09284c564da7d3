"""Removes no-op ops (detach, alias, clone, conversions and views to the same type), repeated computations and dead code.
Parts of a split become slices, and views reshapes."""

from __future__ import annotations

from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import fx

from ..base import Pass
from ..program import Program
from ..torch_private import OpOverload, is_mutable

aten = torch.ops.aten

IDENTITIES = {
    aten.detach.default,
    aten.alias.default,
    aten.clone.default,
    aten.lift_fresh.default,
    aten.lift_fresh_copy.default,
    aten.contiguous.default,
    aten.detach_.default,
}
"""Ops that return their first operand; memory format and storage have no meaning in StableHLO."""

VIEWS = {aten.view.default, aten._unsafe_view.default}
"""They become reshapes: in eager torch a view takes not all strides, and rewrites change those of its operand."""

SAME_TYPE = {
    aten._to_copy.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.expand.default,
    aten.permute.default,
    aten.slice.Tensor,
    aten.copy.default,
    torch.ops.prims.convert_element_type.default,
}
"""Ops that are no-ops where the result has the operand's shape and dtype (permute: and the order is the identity;
copy: the operand is the source)."""


@dataclass(frozen=True)
class Canonicalize(Pass):
    """One sweep in the graph's order, so that a node's operands are canonical when it is looked at. Sizes without a reader go
    with the dead code."""

    def __call__(self, program: Program) -> Program:
        return program.edited(_sweep)


def _sweep(graph: fx.Graph) -> None:
    seen: dict[tuple[object, ...], fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in VIEWS:
            node.target = aten.reshape.default
        node = _part_as_slice(graph, node)
        same = _equal_operand(node)
        if same is not None:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
            continue
        key = _key(node)
        if key is None:
            continue
        if key in seen:
            node.replace_all_uses_with(seen[key])
            graph.erase_node(node)
        else:
            seen[key] = node


def _part_as_slice(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Replaces `getitem(split(x, sizes, dim), i)` by a slice of x, so that rewrites see ops with one result only."""
    source = node.args[0] if node.target is getitem else None
    if not isinstance(source, fx.Node) or source.target not in (aten.split_with_sizes.default, aten.split.Tensor):
        return node
    sizes: Any = source.args[1]
    if source.target is aten.split.Tensor:
        sizes = [part.shape[source.args[2] if len(source.args) > 2 else 0] for part in source.meta["val"]]
    if not all(isinstance(size, int) for size in sizes):
        return node
    dim = source.args[2] if len(source.args) > 2 else 0
    index: Any = node.args[1]
    start = sum(sizes[:index])
    with graph.inserting_before(node):
        part = graph.call_function(aten.slice.Tensor, (source.args[0], dim, start, start + sizes[index]))
    part.meta = dict(node.meta)
    node.replace_all_uses_with(part)
    graph.erase_node(node)
    return part


def _equal_operand(node: fx.Node) -> fx.Node | None:
    """The operand that equals the node's result, or None."""
    index = 1 if node.target is aten.copy.default else 0
    operand = node.args[index] if len(node.args) > index else None
    if not isinstance(operand, fx.Node):
        return None
    if node.target in IDENTITIES:
        return operand
    if node.target not in SAME_TYPE or not _same_type(operand.meta.get("val"), node.meta.get("val")):
        return None
    if node.target is aten.permute.default:
        order: Any = node.args[1]
        return operand if [dim % len(order) for dim in order] == list(range(len(order))) else None
    if node.target is aten.slice.Tensor and (node.args[4] if len(node.args) > 4 else 1) != 1:
        return None
    return operand


def _same_type(before: object, after: object) -> bool:
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
        return False
    if before.dtype != after.dtype or len(before.shape) != len(after.shape):
        return False
    return all(_same_size(one, other) for one, other in zip(before.shape, after.shape, strict=True))


def _same_size(one: object, other: object) -> bool:
    """Equal for every binding: the same number or the same expression; never adds a guard."""
    if isinstance(one, torch.SymInt) and isinstance(other, torch.SymInt):
        return one.node.expr == other.node.expr
    return isinstance(one, int) and isinstance(other, int) and one == other


def _key(node: fx.Node) -> tuple[object, ...] | None:
    """A key that equal computations share; None for ops with effects, randomness or unhashable arguments."""
    if not isinstance(node.target, OpOverload):
        return None
    if torch.Tag.nondeterministic_seeded in node.target.tags or is_mutable(node.target):
        return None
    try:
        key = (node.target, _frozen(node.args), _frozen(node.kwargs))
        hash(key)
    except TypeError:
        return None
    return key


def _frozen(value: object) -> object:
    if isinstance(value, list | tuple):
        return tuple(_frozen(entry) for entry in value)
    if isinstance(value, dict):
        return tuple((key, _frozen(entry)) for key, entry in sorted(value.items()))
    if isinstance(value, bool | int | float):
        return (type(value), repr(value))
    return value
