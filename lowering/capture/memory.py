"""Aliasing in exported graphs, and writes through views that torch's functionalization gets wrong.

Comes in: the graph of a program fresh from torch.export, with its views and in-place ops. Goes out: the same, or a copy of it with

- `unfold` replaced by other views: functionalization zeroes the elements that no window covers;
- `unsafe_split` and `unsafe_chunk` replaced by `split` and `chunk`: functionalization treats them as copies.

Refused, with the line: a write through a view with overlapping elements, whose order eager torch does not define; and
`x.data = y` (an in-place copy here, see stand_ins.py) where a view of the old memory, or `y` after a mutation, is read later.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from operator import getitem
from typing import Any

import torch
from torch import fx

from ...passes.program import where
from ...passes.torch_private import OpOverload, detect_fake_mode, guarding_hint_or_throw, schema_of
from ..errors import CaptureError

aten = torch.ops.aten
UNSAFE = {
    aten.unsafe_split.Tensor: aten.split.Tensor,
    aten.unsafe_split_with_sizes.default: aten.split_with_sizes.default,
    aten.unsafe_chunk.default: aten.chunk.default,
}


def sources(node: fx.Node) -> list[fx.Node]:
    """The operands that the node's result aliases."""
    if node.target is getitem:
        return [node.args[0]]  # type: ignore[list-item]
    if node.target in UNSAFE:
        return [node.args[0]]  # type: ignore[list-item]
    if not isinstance(node.target, OpOverload):
        return []
    return [operand for operand, alias in _operands(node) if alias is not None]


def written(node: fx.Node) -> list[fx.Node]:
    """The operands that the node mutates."""
    if isinstance(node.target, OpOverload):
        return [operand for operand, alias in _operands(node) if alias is not None and alias.is_write]
    region, operands = _region(node)
    if region is None:
        return []
    changed = {one for inner in region.graph.nodes for target in written(inner) for one in chain(target)}
    places = [one for one in region.graph.nodes if one.op == "placeholder"]
    return [
        operand
        for place, operand in zip(places, operands, strict=True)
        if place in changed and isinstance(operand, fx.Node)
    ]


def chain(node: fx.Node) -> Iterator[fx.Node]:
    """The node and all that it is a view of, back to the base tensor."""
    left = [node]
    seen = set()
    while left:
        one = left.pop()
        if one not in seen:
            seen.add(one)
            yield one
            left += sources(one)


def _operands(node: fx.Node) -> Iterator[tuple[fx.Node, Any]]:
    """Each operand that is a node, with its alias annotation in the op's schema."""
    schema = schema_of(node.target)  # type: ignore[arg-type]
    values = dict(zip((one.name for one in schema.arguments), node.args, strict=False)) | node.kwargs
    for argument in schema.arguments:
        value = values.get(argument.name)
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, fx.Node):
                yield one, argument.alias_info


def _region(node: fx.Node) -> tuple[fx.GraphModule | None, tuple[Any, ...]]:
    """The subgraph of a node for `torch.no_grad()` or autocast, and its operands; (None, ()) for other nodes."""
    if getattr(node.target, "__name__", "") not in ("wrap_with_set_grad_enabled", "wrap_with_autocast"):
        return None, ()
    index = next(index for index, one in enumerate(node.args) if isinstance(one, fx.Node) and one.op == "get_attr")
    region = getattr(node.graph.owning_module, str(node.args[index].target))  # type: ignore[union-attr]
    return region, tuple(node.args[index + 1 :])


def graphs(module: fx.GraphModule) -> Iterator[fx.Graph]:
    """The module's graph and those of its regions."""
    return (one.graph for one in module.modules() if isinstance(one, fx.GraphModule))


def views_to_rewrite(module: fx.GraphModule) -> list[fx.Node]:
    """The views that are written through and that functionalization gets wrong. Raises CaptureError for overlapping elements."""
    found: dict[fx.Node, None] = {}
    for graph in graphs(module):
        through = {one for node in graph.nodes for target in written(node) for one in chain(target)}
        for node in graph.nodes:
            if node not in through or node.op != "call_function":
                continue
            _refuse_overlap(node)
            if node.target in UNSAFE or (node.target is aten.unfold.default and not _covers(node)):
                found[node] = None
    return list(found)


def rewrite(node: fx.Node) -> None:
    """Replaces the node, in its graph, by other views of the same elements. Raises CaptureError where there are none."""
    if node.target in UNSAFE:
        node.target = UNSAFE[node.target]
        return
    operand, dim, size, step = _unfold(node)
    count = node.meta["val"].shape[dim]
    graph = node.graph
    with graph.inserting_before(node):
        length = operand.meta["val"].shape[dim]
        taken = size if count == 1 else step
        if isinstance(count, torch.SymInt) or count * taken > length:
            raise CaptureError(
                "an in-place op changes windows by unfold that leave elements out, whose value torch's functionalization loses",
                where=where(node),
                next_step="write to slices: x[..., k::step].add_(...) for each k below the window's size",
            )
        part = _call(graph, node, aten.narrow.default, operand, dim, 0, count * taken)
        parts = _call(graph, node, aten.unflatten.int, part, dim, [count, taken])
        parts = _call(graph, node, aten.narrow.default, parts, dim + 1, 0, size)
        windows = _call(graph, node, aten.movedim.int, parts, dim + 1, operand.meta["val"].ndim)
    node.replace_all_uses_with(windows)
    graph.erase_node(node)
    windows.name = node.name  # the signature of the exported program knows its results by name


def _call(graph: fx.Graph, origin: fx.Node, op: Any, *args: Any) -> fx.Node:
    made = graph.call_function(op, args)
    values = [one.meta["val"] if isinstance(one, fx.Node) else one for one in args]
    mode = detect_fake_mode([one for one in values if isinstance(one, torch.Tensor)])
    with mode:  # type: ignore[union-attr]
        made.meta = {**origin.meta, "val": op(*values)}
    return made


def _unfold(node: fx.Node) -> tuple[fx.Node, int, Any, Any]:
    operand, dim, size, step = node.args
    return operand, dim % max(operand.meta["val"].ndim, 1), size, step  # type: ignore[union-attr, return-value]


def _covers(node: fx.Node) -> bool:
    """Whether the windows of an `unfold` cover every element of the operand."""
    operand, dim, size, step = _unfold(node)
    if operand.meta["val"].ndim == 0:
        return True
    count, length = node.meta["val"].shape[dim], operand.meta["val"].shape[dim]
    return step == size and not isinstance(count, torch.SymInt) and count * size == length


def _refuse_overlap(node: fx.Node) -> None:
    val = node.meta.get("val")
    if node.target not in (aten.unfold.default, aten.as_strided.default) or not isinstance(val, torch.Tensor):
        return
    reach = 0
    sizes = zip(map(guarding_hint_or_throw, val.stride()), map(guarding_hint_or_throw, val.shape), strict=True)
    for stride, size in sorted(pair for pair in sizes if pair[1] > 1):
        if stride <= reach:
            raise CaptureError(
                f"an in-place op changes a view by {node.target.__name__}, in which several elements are one number in memory",
                where=where(node),
                next_step="write to a copy, or build the result out of place: torch.scatter_add, torch.nn.functional.fold",
            )
        reach += stride * (size - 1)


def refuse_old_memory(module: fx.GraphModule, lines: Collection[str]) -> None:
    """Raises CaptureError where an in-place copy on one of `lines` is not equivalent to the `x.data = y` that it replaces.

    It is equivalent where no older view of x is read later, and where y is read later only if neither is mutated.
    """
    for graph in graphs(module):
        order = {node: index for index, node in enumerate(graph.nodes)}
        for node, target, value, line in _assignments(graph, lines):
            old, new = _family(graph, target), _family(graph, value) if value is not None else set()
            later = [one for one in graph.nodes if order[one] > order[node]]
            reads = {operand for one in later for operand in one.all_input_nodes}
            writes = {one for other in later for one in written(other)}
            stale = {one for one in old if order[one] < order[node]} - {_root(target)}
            if reads & (stale - _handles(node)) or (reads & new and writes & (old | new)):
                raise CaptureError(
                    "a tensor's .data is assigned, and its old memory, or what was assigned to it, is used again in another way",
                    where=line,
                    next_step="write it out of place: compute a new tensor, and use that where the new values are meant",
                )


def _assignments(
    graph: fx.Graph, lines: Collection[str]
) -> Iterator[tuple[fx.Node, fx.Node, fx.Node | None, str | None]]:
    """Yields the node, the tensor whose .data it assigns, the assigned tensor, and the line; a region counts as one node."""
    for node in graph.nodes:
        if node.target is aten.copy_.default and where(node) in lines:
            yield node, node.args[0], node.args[1], where(node)
        region, operands = _region(node)
        if region is None:
            continue
        places = dict(zip((one for one in region.graph.nodes if one.op == "placeholder"), operands, strict=True))
        for _, target, value, line in _assignments(region.graph, lines):
            owner = places.get(_root(target))
            if isinstance(owner, fx.Node):
                given = places.get(_root(value)) if value is not None else None
                yield node, owner, given if isinstance(given, fx.Node) else None, line


def _root(node: fx.Node) -> fx.Node:
    return list(chain(node))[-1]


def _family(graph: fx.Graph, node: fx.Node) -> set[fx.Node]:
    """Every node that is a view of the same base tensor as `node`."""
    root = _root(node)
    return {one for one in graph.nodes if root in chain(one)}


def _handles(node: fx.Node) -> set[fx.Node]:
    """The views that an in-place copy writes through, such as x.detach()."""
    return set(chain(node.args[0])) if node.target is aten.copy_.default else set()  # type: ignore[arg-type]
