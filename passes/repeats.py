"""Finds the repeated layers of a graph: calls of modules that compute the same from other parameters and states.

Comes in: a Program's graph, whose nodes say which module's call made them (`meta["nn_module_stack"]`). Goes out: the graph's
nodes in a topological order, with one `Layer` in the place of each call that is repeated.
Guaranteed: layers with the same `first` have the same ops, attributes, source lines, wiring and types (by symbol, so for every
binding); they differ in the values that they get from outside alone. What differs in anything else stays as it is: a decoder whose layers
take turns gives two kinds of layers, and the first layer of one that has no residual yet gives none.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import fx

from .contract import SILENT, is_symbolic
from .program import Program, module_paths, path_below, source_of

LEAST = 8
"""Ops of a layer at least: calls of a smaller one would cost a reader more than they save."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One call of a repeated module.

    path: of the module, "model.layers.3"; kind: its class's name. nodes: its ops, in the graph's order. operands: the tensors from
    outside, in the order of their first use. fixed: what it reads besides and is the same for all layers of the kind: numbers,
    regions of control flow. results: nodes with users outside.
    """

    path: str
    kind: str
    nodes: tuple[fx.Node, ...]
    operands: tuple[fx.Node, ...]
    fixed: tuple[fx.Node, ...]
    results: tuple[fx.Node, ...]
    like: Layer | None = None

    @property
    def first(self) -> Layer:
        """The first layer of its kind, of which the body is emitted."""
        return self.like or self


Item = fx.Node | Layer


def items_of(program: Program) -> tuple[Item, ...]:
    """`in_layers` of the program's graph, found once: it is kept with the program, which never changes."""
    kept = vars(program)
    if _KEPT not in kept:
        kept[_KEPT] = in_layers(program.graph)
    found: tuple[Item, ...] = kept[_KEPT]
    return found


_KEPT = "_items"


def in_layers(graph: fx.Graph) -> tuple[Item, ...]:
    """The nodes of the graph, each repeated layer's in one."""
    return _in_order(graph, list(_repeated(graph)))


# -- which calls are repeated --------------------------------------------------------------------------------------------

Call = tuple[str, ...]
"""A call of a module: the keys of its nodes' module stack from the outermost module to it."""


def _repeated(graph: fx.Graph) -> Iterator[Layer]:
    calls: dict[fx.Node, Call] = {}
    for node in graph.nodes:
        if node.op != "call_function" or is_symbolic(node) or str(node.target) in SILENT:
            continue
        source = node.args[0] if node.target is getitem else None
        calls[node] = calls[source] if source in calls else tuple(node.meta.get("nn_module_stack") or ())
    yield from _below(calls, list(calls), 0)


def _below(calls: Mapping[fx.Node, Call], nodes: Sequence[fx.Node], depth: int) -> Iterator[Layer]:
    """The repeated calls among those that the call at `depth`, which made `nodes`, makes itself; else among theirs."""
    children: dict[str, list[fx.Node]] = {}
    for node in nodes:
        if len(calls[node]) > depth:
            children.setdefault(calls[node][depth], []).append(node)
    whole = dict(children)
    alike: dict[Hashable, list[str]] = {}
    for name, mine in _without_shared(children).items():
        if len(mine) >= LEAST:
            alike.setdefault(tuple(node.target for node in mine), []).append(name)
            children[name] = mine
    for names in alike.values():
        first: dict[Hashable, Layer] = {}
        described = [_layer(children[name], depth) for name in names] if len(names) > 1 else []
        counts: dict[Hashable, int] = {}
        for key, _ in described:
            counts[key] = counts.get(key, 0) + 1
        for name, (key, layer) in zip(names, described, strict=False):
            if layer is None or counts[key] < 2:
                continue
            del whole[name]
            yield first.setdefault(key, layer) if key not in first else _as(layer, first[key])
    for mine in whole.values():
        yield from _below(calls, mine, depth + 1)


def _as(layer: Layer, first: Layer) -> Layer:
    return Layer(layer.path, layer.kind, layer.nodes, layer.operands, layer.fixed, layer.results, first)


def _without_shared(children: Mapping[str, list[fx.Node]]) -> dict[str, list[fx.Node]]:
    """Each child's nodes without what it computes for several others, such as a rotary embedding's rows, which CSE left in the
    first layer. A child that would lose half of its nodes keeps them."""
    owner = {node: name for name, mine in children.items() for node in mine}
    kept = {}
    for name, mine in children.items():
        shared: set[fx.Node] = set()
        for node in reversed(mine):
            others = {owner.get(user) for user in node.users} - {name, None}
            if len(others) > 1 or any(user in shared for user in node.users):
                shared.add(node)
        kept[name] = [node for node in mine if node not in shared] if 2 * len(shared) < len(mine) else mine
    return kept


# -- what makes two calls equal ------------------------------------------------------------------------------------------


def _layer(nodes: Sequence[fx.Node], depth: int) -> tuple[Hashable, Layer | None]:
    """A key that equal calls share, and the call as a layer; None where it cannot be one."""
    described = _Description(nodes)
    path, kind = _module(nodes[0], depth)
    try:
        key = (kind, tuple(described.of(node, path) for node in nodes), described.results)
        hash(key)
    except (_NoLayer, TypeError):
        return None, None
    results = tuple(nodes[index] for index in described.results)
    return key, Layer(path, kind, tuple(nodes), tuple(described.operands), tuple(described.fixed), results)


def _module(node: fx.Node, depth: int) -> tuple[str, str]:
    """Path and class name of the module at `depth` of the node's stack."""
    if node.target is getitem and isinstance(node.args[0], fx.Node):
        return _module(node.args[0], depth)
    _, kind = list(node.meta["nn_module_stack"].values())[depth]
    return module_paths(node)[depth], kind.__name__ if isinstance(kind, type) else str(kind).rpartition(".")[2]


class _NoLayer(Exception):
    """The nodes cannot be a function of tensors."""


class _Description:
    """Describes nodes without naming them: operands inside by position, those from outside by the order of their first use."""

    def __init__(self, nodes: Sequence[fx.Node]) -> None:
        self._positions = {node: position for position, node in enumerate(nodes)}
        self.operands: dict[fx.Node, int] = {}
        self.fixed: dict[fx.Node, None] = {}
        self.results = tuple(
            position for node, position in self._positions.items() if any(self._reads(user) for user in node.users)
        )
        if not self.results or any(
            not isinstance(nodes[index].meta.get("val"), torch.Tensor) for index in self.results
        ):
            self.of = self._refuse  # type: ignore[method-assign]

    def of(self, node: fx.Node, path: str) -> Hashable:
        """What the node computes and from what; path: of the module."""
        return (
            node.target,
            self._argument(node.args),
            self._argument(node.kwargs),
            _type(node.meta.get("val")),
            path_below(node, path),
            source_of(node),
        )

    def _refuse(self, node: fx.Node, path: str) -> Hashable:
        raise _NoLayer

    def _reads(self, user: fx.Node) -> bool:
        """Whether a user outside reads the value; one that is a number or an assertion has no operand in the module."""
        return user not in self._positions and not is_symbolic(user) and str(user.target) not in SILENT

    def _argument(self, value: object) -> Hashable:
        if isinstance(value, fx.Node):
            return self._node(value)
        if isinstance(value, list | tuple):
            return (type(value).__name__, *map(self._argument, value))
        if isinstance(value, dict):
            return tuple((name, self._argument(entry)) for name, entry in value.items())
        if isinstance(value, slice):
            return ("slice", *map(self._argument, (value.start, value.stop, value.step)))
        if isinstance(value, bool | int | float | complex):
            return type(value), repr(value)  # 1, 1.0 and True are equal, and so are 0.0 and -0.0
        return _size(value)

    def _node(self, node: fx.Node) -> Hashable:
        if node in self._positions:
            return "inside", self._positions[node]
        val = node.meta.get("val")
        if is_symbolic(node):
            self.fixed[node] = None
            return "number", type(val), _size(val)
        if isinstance(val, torch.Tensor):
            return "outside", self.operands.setdefault(node, len(self.operands)), _type(val)
        if node.op in ("get_attr", "placeholder"):
            self.fixed[node] = None
            return node
        raise _NoLayer  # the results of an op with several


def _type(val: object) -> Hashable:
    if isinstance(val, torch.Tensor):
        return (val.dtype, *map(_size, val.shape))
    if isinstance(val, list | tuple):
        return (len(val), *map(_type, val))
    return type(val), _size(val)


def _size(value: Any) -> Hashable:
    """A size by its expression, so that equal ones are equal for every binding; comparing SymInts would add a guard."""
    return value.node.expr if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool) else value


# -- the order -----------------------------------------------------------------------------------------------------------


def _in_order(graph: fx.Graph, layers: list[Layer]) -> tuple[Item, ...]:
    """A topological order of the nodes with layers in one; a layer that needs a value that needs the layer is left out."""
    while True:
        order, stuck = _sorted(graph, layers)
        kept = [layer for layer in layers if layer not in stuck]
        if not stuck:
            return order
        firsts = {layer.first for layer in kept if sum(other.first is layer.first for other in kept) > 1}
        layers = [layer for layer in kept if layer.first in firsts and layer.first not in stuck]


def _sorted(graph: fx.Graph, layers: Sequence[Layer]) -> tuple[tuple[Item, ...], set[Layer]]:
    """The order, stable beside the graph's own, and the layers that have no place in one."""
    place: dict[Item, int] = {}
    item: dict[fx.Node, Item] = {node: layer for layer in layers for node in layer.nodes}
    for position, node in enumerate(graph.nodes):
        place[item.setdefault(node, node)] = position  # a layer comes where its last node stands
    users: dict[Item, list[Item]] = {one: [] for one in place}
    missing: dict[Item, int] = dict.fromkeys(place, 0)
    for one in place:
        for source in _sources(one, item):
            users[source].append(one)
            missing[one] += 1
    ready = [(place[one], index, one) for index, one in enumerate(place) if not missing[one]]
    heapq.heapify(ready)
    order: list[Item] = []
    while ready:
        _, _, one = heapq.heappop(ready)
        order.append(one)
        for user in users[one]:
            missing[user] -= 1
            if not missing[user]:
                heapq.heappush(ready, (place[user], place[user], user))
    return tuple(order), {layer for layer in layers if missing[layer]}


def _sources(one: Item, item: Mapping[fx.Node, Item]) -> set[Item]:
    """The items whose values this one reads."""
    nodes: Iterable[fx.Node] = one.nodes if isinstance(one, Layer) else (one,)
    return {item[operand] for node in nodes for operand in node.all_input_nodes} - {one}
