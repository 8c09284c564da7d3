"""Rewrites exported programs so that torch can decompose them.

Comes in: an ExportedProgram. Goes out: the same program, or an equivalent one with these changes:

- Containers that a library registered, such as transformers' caches, become lists of their parts. `run_decompositions` constructs
  them while it traces, and their constructors' ops (a new cache concatenates its first keys to an empty tensor) would enter the
  graph with constants that the new program does not hold.
- A constant that aliases a buffer becomes that buffer. Non-strict export lifts a tensor that is reached through a plain Python
  object, such as the keys of a static cache, although the module has it as a buffer: writes to it would be lost.
- Buffers that alias each other become the first of them where the program writes, as strict export does everywhere: torch
  cannot decompose a program that mutates an aliased input.
- Views that are written through, and that torch's functionalization gets wrong, are replaced: memory.py.

Refused: replacing a tensor of the caller and assigning to `.data`, which torch's decomposition drops; and a program in which
torch.export lost what torch.func computes.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict, deque, namedtuple
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind

from ...passes.program import where
from ...passes.torch_private import (
    OpOverload,
    copied_codegen,
    is_functorch_wrapped_tensor,
    is_mutable,
    pytree,
    storage_id,
    with_graph,
)
from ..errors import CaptureError
from .memory import graphs, rewrite, views_to_rewrite

PLAIN = (None, tuple, list, dict, OrderedDict, defaultdict, deque, namedtuple)
"""Types of containers whose constructors compute nothing; None is the type of a leaf."""


def decomposable(exported: ExportedProgram) -> ExportedProgram:
    """Returns the program, or a changed copy, so that torch can decompose it. Raises CaptureError."""
    _refuse_replacements(exported)
    _refuse_lost(exported)
    signature = exported.module_call_graph[0].signature
    specs = (signature.in_spec, signature.out_spec) if signature is not None else ()
    shared = _shared(exported)
    views = views_to_rewrite(exported.graph_module)
    if not shared and not views and all(_is_plain(spec) for spec in specs):
        return exported
    module, graph_signature = exported.graph_module, exported.graph_signature
    if shared or views:
        module, graph_signature = _copied(exported, shared)
    for view in views_to_rewrite(module):
        rewrite(view)
    changed = with_graph(exported, module, graph_signature)
    for entry in changed.module_call_graph:
        if entry.signature is not None:
            entry.signature.in_spec = _as_lists(entry.signature.in_spec)
            entry.signature.out_spec = _as_lists(entry.signature.out_spec)
    return changed


def _refuse_replacements(exported: ExportedProgram) -> None:
    """Raises CaptureError where set_, resize_ or t_ changes the memory or the shape of an input, weight or buffer in place."""
    for node in (node for graph in graphs(exported.graph_module) for node in graph.nodes):
        op = node.target
        _refuse_growth(node)
        if (
            op is torch.ops.aten._has_compatible_shallow_copy_type.default
        ):  # the only trace of `x.data = y` in an exported graph
            what, instead = "a tensor's .data is assigned, which torch.export does not capture", "x.copy_(y)"
        elif not isinstance(op, OpOverload) or torch.Tag.inplace_view not in op.tags:
            continue
        else:
            owner = _changed(node)
            before, after = owner.meta.get("val"), node.meta.get("val")
            if owner.op != "placeholder" or ("::set_" not in op.name() and _laid_out(before) == _laid_out(after)):
                continue
            what, instead = f"{op} gives {owner.name}, a tensor of the caller, other memory or another shape", "x[1:]"
        raise CaptureError(
            f"{what}; a module's arguments keep both",
            where=where(node),
            next_step=f"write it out of place, such as {instead}",
        )


def _refuse_growth(node: fx.Node) -> None:
    """Raises CaptureError where a buffer is assigned a value of another shape: a compiled module's states have fixed shapes."""
    owner = node.args[0] if node.target is torch.ops.aten.copy_.default else None
    if not isinstance(owner, fx.Node) or owner.op != "placeholder":
        return
    value: Any = node.args[1]
    before, after = owner.meta["val"].shape, value.meta["val"].shape
    if (
        len(before) == len(after)
        and any(
            isinstance(one, int) and isinstance(other, int) and one != other and other != 1
            for one, other in zip(before, after, strict=True)
        )
    ) or len(after) > len(before):
        raise CaptureError(
            f"the buffer {owner.name.removeprefix('b_')} is assigned a value of shape {list(after)} in forward, and it is {list(before)}; "
            "a compiled module's state keeps its shape",
            where=where(node) or where(value),
            next_step="make it large enough when the model is built, and take a slice of it in forward",
        )


def is_wrapped(value: object) -> bool:
    """Whether the value is a torch.func wrapper tensor, which is invalid outside the call that made it."""
    return isinstance(value, torch.Tensor) and is_functorch_wrapped_tensor(value)


def _refuse_lost(exported: ExportedProgram) -> None:
    """Raises CaptureError for a constant that is a result of torch.func: torch.export lost how it depends on the inputs."""
    nodes = {node.name: node for node in exported.graph.nodes}
    for spec in exported.graph_signature.input_specs:
        if is_wrapped(exported.constants.get(spec.target or "")):
            user = next(iter(nodes[spec.arg.name].users), None)
            raise CaptureError(
                f"torch.export lost how {spec.target} was computed, inside of torch.func.grad, vjp or jacrev",
                where=where(user) if user else None,
                next_step="give fxhlo.lower the module itself, which it captures below torch.func",
            )


def _changed(node: fx.Node) -> fx.Node:
    """The tensor that an in-place op, or a chain of them, mutates."""
    while is_mutable(node.target) and node.args:
        node = node.args[0]  # type: ignore[assignment]
    return node


def _laid_out(value: object) -> tuple[object, ...]:
    return (value.shape, value.stride()) if isinstance(value, torch.Tensor) else ()


def _is_plain(spec: pytree.TreeSpec) -> bool:
    return spec.type in PLAIN and all(_is_plain(child) for child in spec.children())


def _as_lists(spec: pytree.TreeSpec) -> pytree.TreeSpec:
    if spec.is_leaf():
        return spec
    children = [_as_lists(child) for child in spec.children()]
    known = spec.type in PLAIN
    return pytree.TreeSpec(spec.type if known else list, spec.context if known else None, children)


def _shared(exported: ExportedProgram) -> dict[str, str]:
    """Maps the input name of a constant or buffer to that of the first buffer with the same memory, shape, strides and dtype."""
    specs = exported.graph_signature.input_specs
    first: dict[tuple[object, ...] | None, str] = {}
    for spec in specs:
        if spec.kind is InputKind.BUFFER:
            first.setdefault(_place(exported, spec.target), spec.arg.name)
    kinds = [InputKind.CONSTANT_TENSOR, InputKind.BUFFER] if _writes(exported) else [InputKind.CONSTANT_TENSOR]
    places = {spec.arg.name: _place(exported, spec.target) for spec in specs if spec.kind in kinds}
    return {
        name: first[place] for name, place in places.items() if place is not None and first.get(place, name) != name
    }


def _writes(exported: ExportedProgram) -> bool:
    """Whether an op of the program, or of its regions, mutates an operand."""
    graphs = (module.graph for module in exported.graph_module.modules() if isinstance(module, fx.GraphModule))
    ops = (node.target for graph in graphs for node in graph.nodes)
    return any(is_mutable(op) for op in ops)


def _place(exported: ExportedProgram, target: str | None) -> tuple[object, ...] | None:
    """A tensor's storage, offset, shape, strides and dtype; None for one that is not strided or has no elements."""
    tensor: object = exported.state_dict.get(target or "", exported.constants.get(target or ""))
    if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided or not tensor.numel():
        return None
    return storage_id(tensor), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _copied(exported: ExportedProgram, shared: dict[str, str]) -> tuple[fx.GraphModule, ExportGraphSignature]:
    """Copies the program's graph and its regions and replaces each shared input by its buffer. shared: as `_shared` returns it."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(exported.graph, copies))
    graph.output_node().meta = dict(exported.graph.output_node().meta)
    graph.set_codegen(copied_codegen(exported.graph))
    placeholders = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    for name, buffer in shared.items():
        placeholders[name].replace_all_uses_with(placeholders[buffer])
        graph.erase_node(placeholders[name])
    module = fx.GraphModule(exported.graph_module, graph)
    for name, region in exported.graph_module.named_children():
        if isinstance(region, fx.GraphModule):
            setattr(module, name, copy.deepcopy(region))
    module.meta = dict(exported.graph_module.meta)
    inputs = [spec for spec in exported.graph_signature.input_specs if spec.arg.name not in shared]
    return module, ExportGraphSignature(inputs, list(exported.graph_signature.output_specs))
