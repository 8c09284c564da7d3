"""Edits of a graph that keep every node's fake value: what rewrites are written with.

A new node gets its fake value by running the op on the operands' fake values, so that shapes stay symbolic, and the user's line of its
origin, the node that it replaces.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from operator import getitem
from typing import Any

import torch
from torch import fx

from .functional import functional_graph
from .step_inputs import StepInput
from .torch_private import FakeTensor, FakeTensorMode, ShapeEnv, new_size

ORIGIN = ("stack_trace", "nn_module_stack")


def fake_mode_of(graph: fx.Graph) -> FakeTensorMode:
    """The fake mode of the graph's values."""
    for node in graph.nodes:
        val = node.meta.get("val")
        if isinstance(val, FakeTensor):
            return val.fake_mode
    raise AssertionError("the graph holds no fake tensor")


def outputs_of(graph: fx.Graph) -> list[fx.Node]:
    """What the graph returns; in a step of the engine every output is a tensor."""
    return list(graph.output_node().args[0])  # type: ignore[arg-type]


def values(arguments: Any) -> Any:
    """The (nested) arguments with each node replaced by its fake value."""
    return fx.map_arg(arguments, lambda node: node.meta["val"])


def call(
    graph: fx.Graph,
    target: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any] | None = None,
    *,
    origin: fx.Node | None = None,
) -> fx.Node:
    """Adds a call at the insertion point, with its fake value and the user's line of `origin`."""
    kwargs = kwargs or {}
    node = graph.call_function(target, tuple(args), kwargs)
    with fake_mode_of(graph):
        node.meta["val"] = target(*values(tuple(args)), **values(kwargs))
    if origin is not None:
        node.meta.update({key: origin.meta[key] for key in ORIGIN if key in origin.meta})
    return node


def replace_by_stateful(
    graph: fx.Graph, node: fx.Node, target: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> fx.Node:
    """Replaces `node` by the first of the two results of a call, and returns the second: the new value of its state."""
    with graph.inserting_before(node):
        both = call(graph, target, args, kwargs, origin=node)
        result, updated = (call(graph, getitem, (both, index), origin=node) for index in range(2))
    node.replace_all_uses_with(result)
    graph.erase_node(node)
    return updated


Traces = dict[Hashable, fx.GraphModule]
"""What functions traced to, so that the same call in another layer is not traced again."""


def inline(
    graph: fx.Graph,
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    *,
    origin: fx.Node,
    traces: Traces | None = None,
) -> Any:
    """Traces `function(*args, **kwargs)` to ATen ops and adds them at the insertion point. Returns its outputs: nodes, nested as they are.

    traces: those of this graph so far; a call with operands of the same types takes one of them.
    """
    nodes = [arg for arg in args if isinstance(arg, fx.Node)]

    def flat(*tensors: torch.Tensor) -> Any:
        given = dict(zip(nodes, tensors, strict=True))
        return function(*[given.get(arg, arg) if isinstance(arg, fx.Node) else arg for arg in args], **kwargs)

    def trace() -> fx.GraphModule:
        with fake_mode_of(graph), torch.no_grad():
            return functional_graph(flat, values(nodes))

    if traces is None or not _plain(nodes):
        traced = trace()
    else:
        key = function, *map(_described, args), *((name, _described(value)) for name, value in kwargs.items())
        traced = traces[key] if key in traces else traces.setdefault(key, trace())
    places = dict(zip((node for node in traced.graph.nodes if node.op == "placeholder"), nodes, strict=True))
    outputs = graph.graph_copy(traced.graph, val_map=places)
    _mark(places, origin)
    return outputs


def _plain(nodes: Sequence[fx.Node]) -> bool:
    """Whether all operands are tensors, each another one: the trace depends on their types alone."""
    return len(set(nodes)) == len(nodes) and all(isinstance(node.meta["val"], torch.Tensor) for node in nodes)


def _described(value: Any) -> Hashable:
    """Equal for arguments for which a function traces to the same."""
    if isinstance(value, fx.Node):
        val = value.meta["val"]
        sizes = (*val.shape, *val.stride(), val.storage_offset())
        return val.dtype, tuple(size.node.expr if isinstance(size, torch.SymInt) else size for size in sizes)
    if isinstance(value, list | tuple):
        return tuple(map(_described, value))
    return type(value), repr(value) if isinstance(value, float) else value


def _mark(places: dict[fx.Node, fx.Node], origin: fx.Node) -> None:
    """Gives the copied nodes the place of `origin`."""
    for old, new in places.items():
        if old.op != "placeholder" and isinstance(new, fx.Node):
            new.meta.update({key: origin.meta[key] for key in ORIGIN if key in origin.meta})


def add_placeholder(graph: fx.Graph, name: str, shape: Sequence[Any], dtype: torch.dtype) -> fx.Node:
    """A new placeholder behind the last one. Sizes may be SymInts."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    first = next(iter(graph.nodes))
    with graph.inserting_after(placeholders[-1]) if placeholders else graph.inserting_before(first):
        node = graph.placeholder("".join(char if char.isalnum() else "_" for char in name))
    with fake_mode_of(graph):
        node.meta["val"] = torch.empty(list(shape), dtype=dtype)
    return node


def add_step_inputs(
    graph: fx.Graph, inputs: Sequence[StepInput], sizes: Mapping[str, int | torch.SymInt]
) -> dict[str, fx.Node]:
    """A placeholder for each input of a step, by name. sizes: what the symbols of their shapes stand for."""
    return {
        one.name: add_placeholder(graph, one.name, one.shape_in(sizes), getattr(torch, one.dtype)) for one in inputs
    }


def new_symbol(graph: fx.Graph, name: str, hint: int, minimum: int, maximum: int | None) -> torch.SymInt:
    """A new symbolic size in the shape environment of the graph's values."""
    environment = fake_mode_of(graph).shape_env
    assert isinstance(environment, ShapeEnv), "the program was captured without symbolic sizes"
    return new_size(environment, name, hint)
