"""Traces three layers of each kind, and copies the graph of the last for the others.

Comes in: a module that is about to be traced. Goes out: the graph that the whole trace would give. Guaranteed: a layer is copied only
where its attributes, down to the last one, are those of the layer that was traced (but for its own name), where its arguments have the same
types, and where the third layer's graph is the second's with its own parameters; where a layer writes to what it is given, to a buffer, or leaves a tensor
somewhere else than in its results, `splice` raises NotRepeated, and the whole model is traced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import fx, nn

from ...passes.contract import is_symbolic
from ...passes.program import path_below, source_of
from ...passes.torch_private import pytree, storage_id
from .alike import PLAIN, Tensors, alike, owners_of

LEAST = 5
"""Layers of one class in one module at least; some of each kind are traced in any case."""
TRACED = 3
"""Layers of a kind that are traced. The first may own what the others share, such as a rotary embedding; the last two must be equal."""
OPS = "fxhlo_capture"


class NotRepeated(Exception):
    """The layers cannot be copied: the whole model must be traced."""


@dataclass(frozen=True)
class Kind:
    """Calls of layers that are alike. paths: of those that are traced. results: (shape, strides, dtype) of each, and how they nest."""

    number: int
    paths: list[str] = field(default_factory=list)
    results: list[tuple[Any, Any, torch.dtype]] = field(default_factory=list)
    nested: list[Callable[[list[torch.Tensor]], Any]] = field(default_factory=list)


class Layers:
    """The repeated layers of one trace.

    module: their root. packages: none is copied unless the classes of all of its modules are defined in these. What a layer does may depend on
    more than it holds (its name, its parent, a global), which no comparison shows.
    """

    def __init__(self, module: nn.Module, packages: Collection[str]) -> None:
        self._paths = {child: path for path, child in module.named_modules()}
        known = all(_is_in(type(child), packages) for child in self._paths)
        self._class = _classes(module, self._paths) if known else {}  # before parameters are swapped for the trace's
        self._kinds: dict[Hashable, Kind] = {}
        self._inside = False
        self.met = False
        """Whether the trace holds a layer's bounds."""
        self.copied = False
        """Whether the trace holds a layer that was not traced."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While it is entered, a call of a repeated layer leaves its bounds in the graph, or one op in its place."""
        _register_ops()
        layers = list(self._class)
        for layer in layers:
            vars(layer)["forward"] = self._forward(layer, layer.forward)
        before, _RUNNING[:] = list(_RUNNING), [self]
        try:
            yield
        finally:
            _RUNNING[:] = before
            for layer in layers:
                del vars(layer)["forward"]

    def _forward(self, layer: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            kind = None if self._inside else self._kind(layer, args, kwargs)
            if kind is None:
                return forward(*args, **kwargs)
            given = _tensors((args, kwargs))
            if len(kind.paths) < TRACED:
                kind.paths.append(self._paths[layer])
                self.met = True
                return self._traced(kind, forward, args, kwargs, given)
            self.copied = True
            results = torch.ops.fxhlo_capture.layer(given, kind.number, self._paths[layer])
            return kind.nested[0](list(results))

        return call

    def _kind(self, layer: nn.Module, args: Any, kwargs: Any) -> Kind:
        places = {id(tensor): place for place, tensor in enumerate(_tensors((args, kwargs)))}
        leaves, spec = pytree.tree_flatten((args, kwargs))
        key = self._class[layer], str(spec), tuple(_argument(leaf, places) for leaf in leaves)
        return self._kinds.setdefault(key, Kind(len(self._kinds)))

    def _traced(
        self, kind: Kind, forward: Callable[..., Any], args: Any, kwargs: Any, given: list[torch.Tensor]
    ) -> Any:
        path = kind.paths[-1]
        inner = list(torch.ops.fxhlo_capture.bound(given, kind.number, path, True))
        swapped = {id(tensor): value for tensor, value in zip(given, inner, strict=True)}
        args, kwargs = pytree.tree_map(lambda leaf: swapped.get(id(leaf), leaf), (args, kwargs))
        self._inside = True
        try:
            results = forward(*args, **kwargs)
        finally:
            self._inside = False
        tensors = _tensors(results)
        own = {id(tensor) for tensor in inner}
        memory = [storage_id(tensor) for tensor in [*inner, *(one for one in tensors if id(one) not in own)]]
        if len(set(memory)) < len(memory):
            raise NotRepeated(f"{path} returns a view of what it is given, or of another result")
        if len(kind.paths) == 1:
            kind.results.extend((tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors)
            kind.nested.append(_nesting(results))
        outside = list(torch.ops.fxhlo_capture.bound([*tensors, *inner], kind.number, path, False))
        return _nesting(results)(outside[: len(tensors)])

    def results(self, number: int) -> list[tuple[Any, Any, torch.dtype]]:
        """The types of the results of a kind's layers."""
        return next(kind.results for kind in self._kinds.values() if kind.number == number)


def _argument(leaf: Any, places: Mapping[int, int]) -> Hashable:
    if isinstance(leaf, torch.Tensor):
        sizes = (*leaf.shape, *leaf.stride())
        return places[id(leaf)], leaf.dtype, tuple(map(_size, sizes))
    if isinstance(leaf, torch.SymInt | torch.SymFloat | torch.SymBool):
        return type(leaf), leaf.node.expr
    if isinstance(leaf, (*PLAIN, str, torch.dtype, torch.device)):
        return type(leaf), repr(leaf)
    return object()  # it may be changed between two calls: equal to no other


def _size(size: Any) -> Hashable:
    return size.node.expr if isinstance(size, torch.SymInt) else size


def _tensors(tree: Any) -> list[torch.Tensor]:
    """The tensors of a tree, each once."""
    found = {id(leaf): leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)}
    return list(found.values())


def _nesting(results: Any) -> Callable[[list[torch.Tensor]], Any]:
    """A function that nests other tensors as `results` nests its own. Raises NotRepeated for results that hold anything else."""
    leaves, spec = pytree.tree_flatten(results)
    places = {id(tensor): place for place, tensor in enumerate(_tensors(results))}
    if not all(leaf is None or isinstance(leaf, torch.Tensor) for leaf in leaves):
        raise NotRepeated("a layer returns more than tensors")
    order = [None if leaf is None else places[id(leaf)] for leaf in leaves]
    return lambda tensors: pytree.tree_unflatten([None if place is None else tensors[place] for place in order], spec)


def _is_in(cls: type, packages: Collection[str]) -> bool:
    return any(cls.__module__ == package or cls.__module__.startswith(f"{package}.") for package in packages)


def _classes(module: nn.Module, paths: Mapping[nn.Module, str]) -> dict[nn.Module, nn.Module]:
    """The layers that have siblings which are alike, each with the first of them."""
    found: dict[nn.Module, nn.Module] = {}
    owners = owners_of(module)
    for parent in paths:
        by_type: dict[type[nn.Module], list[nn.Module]] = {}
        for child in dict.fromkeys(parent.children()):
            if child not in found and "forward" not in vars(child):
                by_type.setdefault(type(child), []).append(child)
        for children in by_type.values():
            if len(children) >= LEAST and any(True for _ in children[0].children()):
                found.update(_alike(children, paths, owners))
    return found


def _alike(
    children: Sequence[nn.Module], paths: Mapping[nn.Module, str], owners: Mapping[int, Collection[str]]
) -> dict[nn.Module, nn.Module]:
    groups: dict[nn.Module, list[nn.Module]] = {}
    tensors = {child: Tensors.of(child, paths[child], owners) for child in children}

    def same(one: nn.Module, other: nn.Module) -> bool:
        return alike(one, other, (paths[one], paths[other]), (tensors[one], tensors[other]))

    for child in children:
        first = next((one for one in groups if same(one, child)), child)
        groups.setdefault(first, []).append(child)
    return {child: first for first, group in groups.items() if len(group) > TRACED for child in group}


# -- the ops that stand in the graph until it is spliced ------------------------------------------------------------------

_RUNNING: list[Layers] = []
"""The trace that runs."""


@cache
def _register_ops() -> None:
    library = torch.library.Library(OPS, "DEF")
    library.define("bound(Tensor[] tensors, int kind, str path, bool entered) -> Tensor[]")
    library.define("layer(Tensor[] tensors, int kind, str path) -> Tensor[]")

    def bound(tensors: Sequence[torch.Tensor], kind: int, path: str, entered: bool) -> list[torch.Tensor]:
        return [torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device=one.device) for one in tensors]

    def layer(tensors: Sequence[torch.Tensor], kind: int, path: str) -> list[torch.Tensor]:
        types = _RUNNING[0].results(kind)
        return [torch.empty_strided(shape, stride, dtype=dtype) for shape, stride, dtype in types]

    torch.library.register_fake(f"{OPS}::bound", bound)
    torch.library.register_fake(f"{OPS}::layer", layer)
    _register_ops.library = library  # type: ignore[attr-defined]  # a library that is collected takes its ops away


# -- the graph ----------------------------------------------------------------------------------------------------------


def splice(graph: fx.Graph, placeholders: Mapping[fx.Node, str]) -> None:
    """Puts the nodes of traced layers in the place of the others, and takes the bounds away. Raises NotRepeated.

    placeholders: the names of parameters and buffers.
    """
    bounds = [node for node in graph.nodes if node.target is torch.ops.fxhlo_capture.bound.default]
    missing = [node for node in graph.nodes if node.target is torch.ops.fxhlo_capture.layer.default]
    order = {node: place for place, node in enumerate(graph.nodes)}
    nodes = list(graph.nodes)
    kinds: dict[int, list[_Body]] = {}
    for enter, leave in zip(bounds[::2], bounds[1::2], strict=True):
        body = _Body(enter, leave, nodes[order[enter] + 1 : order[leave]], placeholders)
        kinds.setdefault(body.kind, []).append(body)
    names = {name: node for node, name in placeholders.items()}
    for node in missing:
        _check(kinds[node.args[1]], node.args[2], graph, placeholders)
    for node in missing:
        _copy(graph, kinds[node.args[1]][-1], node, names)
    for bound in reversed(bounds):
        _without(graph, bound)


class _Body:
    """The nodes of one traced layer, between its bounds."""

    def __init__(
        self, enter: fx.Node, leave: fx.Node, between: Sequence[fx.Node], placeholders: Mapping[fx.Node, str]
    ) -> None:
        self.kind: int = enter.args[1]  # type: ignore[assignment]
        self.path: str = enter.args[2]  # type: ignore[assignment]
        self.arguments = {node: node.args[1] for node in enter.users}
        self.all = [node for node in between if node not in self.arguments]
        self.nodes = [node for node in self.all if not is_symbolic(node)]
        leaving: Any = leave.args[0]
        count = len(self._given(enter))
        self.results, self.given = leaving[: len(leaving) - count], leaving[len(leaving) - count :]
        self.leave = leave
        self._places = {node: place for place, node in enumerate(self.nodes)}
        self._placeholders = placeholders

    @staticmethod
    def _given(enter: fx.Node) -> Any:
        return enter.args[0]

    def check(self) -> None:
        """Raises NotRepeated where a tensor leaves the layer otherwise than as a result."""
        for place, node in enumerate(self.given):
            if self.arguments.get(node) != place:
                raise NotRepeated(f"{self.path} writes to what it is given")
        inside = {*self.nodes, self.leave}
        for node in (*self.nodes, *self.arguments):
            if any(user not in inside and not is_symbolic(user) for user in node.users):
                raise NotRepeated(f"{self.path} leaves a tensor behind")

    def described(self) -> list[Hashable]:
        """What the nodes compute, without the layer's name."""
        made: list[Hashable] = [
            (node.target, self._of(node.args), self._of(node.kwargs), _type(node.meta.get("val")),
             path_below(node, self.path), source_of(node))
            for node in self.nodes
        ]  # fmt: skip
        return [*made, self._of(self.results)]

    def _of(self, value: Any) -> Hashable:
        if isinstance(value, fx.Node):
            if value in self._places:
                return "inside", self._places[value]
            if value in self.arguments:
                return "argument", self.arguments[value]
            if is_symbolic(value):
                return "size", _size(value.meta["val"])
            name = self._placeholders.get(value, "")
            return ("own", name.removeprefix(self.path)) if name.startswith(f"{self.path}.") else value
        if isinstance(value, list | tuple):
            return tuple(map(self._of, value))
        if isinstance(value, dict):
            return tuple((name, self._of(entry)) for name, entry in value.items())
        if isinstance(value, str):
            return renamed(value, self.path, "")
        return (type(value), repr(value)) if isinstance(value, bool | int | float) else _size(value)


def _type(val: Any) -> Hashable:
    if isinstance(val, torch.Tensor):
        return val.dtype, tuple(map(_size, val.shape)), tuple(map(_size, val.stride()))
    return tuple(map(_type, val)) if isinstance(val, list | tuple) else (type(val), _size(val))


def _check(bodies: Sequence[_Body], path: str, graph: fx.Graph, placeholders: Mapping[fx.Node, str]) -> None:
    """Raises NotRepeated where the traced layers of a kind differ, or one changes more than its results."""
    for body in bodies:
        body.check()
    _, first, second = bodies
    try:
        if first.described() != second.described():
            raise NotRepeated(f"{first.path} and {second.path} differ")
    except TypeError as problem:  # an argument that cannot be compared
        raise NotRepeated(str(problem)) from problem
    for node in graph.nodes:
        if node.target is torch.ops.aten.copy_.default and isinstance(node.args[0], fx.Node):
            name = placeholders.get(node.args[0], "")
            if any(name.startswith(f"{one.path}.") for one in bodies):
                raise NotRepeated(f"a layer writes to {name}")


def _copy(graph: fx.Graph, body: _Body, node: fx.Node, names: Mapping[str, fx.Node]) -> None:
    """Replaces the op `node` by the nodes of a layer that was traced, with the parameters of the layer that it stands for."""
    given: Any = node.args[0]
    path: Any = node.args[2]
    made: dict[fx.Node, fx.Node] = {argument: given[place] for argument, place in body.arguments.items()}

    def value(old: fx.Node) -> fx.Node:
        if old in made:
            return made[old]
        name = body._placeholders.get(old, "")
        return names[path + name.removeprefix(body.path)] if name.startswith(f"{body.path}.") else old

    with graph.inserting_before(node):
        for old in body.all:
            new = made[old] = graph.node_copy(old, value)
            new.args = fx.node.map_aggregate(new.args, lambda entry: _renamed(entry, body.path, path))
            new.kwargs = fx.node.map_aggregate(new.kwargs, lambda entry: _renamed(entry, body.path, path))
            stack = old.meta.get("nn_module_stack")
            if stack:
                new.meta["nn_module_stack"] = {
                    renamed(key, body.path, path): (renamed(where, body.path, path), kind)
                    for key, (where, kind) in stack.items()
                }
    for user in list(node.users):
        user.replace_all_uses_with(value(body.results[user.args[1]]))
        graph.erase_node(user)
    graph.erase_node(node)


def _without(graph: fx.Graph, bound: fx.Node) -> None:
    """Removes a bound: what comes out of it is what went in."""
    given: Any = bound.args[0]
    for user in list(bound.users):
        user.replace_all_uses_with(given[user.args[1]])
        graph.erase_node(user)
    graph.erase_node(bound)


def _renamed(value: Any, old: str, new: str) -> Any:
    return renamed(value, old, new) if isinstance(value, str) else value


def renamed(text: str, old: str, new: str) -> str:
    """`text` with the last two parts of the path `new` ("layers.3") in the place of those of `old`, which may stand behind any prefix."""
    tail = ".".join(old.split(".")[-2:])
    return re.sub(
        rf"(?<![\w.-]){re.escape(old)}(?![\w-])|(?<![\w-]){re.escape(tail)}(?![\w-])",
        lambda found: new if found.group() == old else ".".join(new.split(".")[-2:]),
        text,
    )
