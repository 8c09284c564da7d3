"""Exported programs as torch's decomposition can take them. With capture.py and trace.py, what touches torch's private interfaces.

Comes in: an ExportedProgram. Goes out: the same program, or another one with the same values and these two things changed.

- Containers that a library registered, such as transformers' caches, become lists of their parts. `run_decompositions` builds them
  while it traces, and what their constructors compute (a new cache joins its first keys to an empty tensor) comes into the graph
  with constants that the new program does not hold.
- A constant that is the memory of a buffer becomes that buffer. Non-strict export lifts a tensor that is reached through a plain Python
  object, such as the keys of a static cache, although the module has it as a buffer: what is written to it is then lost.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque, namedtuple
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind
from torch.utils import _pytree as pytree

PLAIN = (None, tuple, list, dict, OrderedDict, defaultdict, deque, namedtuple)
"""Types of containers that compute nothing when they are built; None is a leaf's."""


def decomposable(exported: ExportedProgram) -> ExportedProgram:
    """The program itself where nothing stands in the way; it is never edited."""
    signature = exported.module_call_graph[0].signature
    specs = (signature.in_spec, signature.out_spec) if signature is not None else ()
    shared = _shared(exported)
    if not shared and all(_is_plain(spec) for spec in specs):
        return exported
    module, graph_signature = exported.graph_module, exported.graph_signature
    if shared:
        module, graph_signature = _on_buffers(exported, shared)
    changed = exported._update(module, graph_signature)
    for entry in changed.module_call_graph:
        if entry.signature is not None:
            entry.signature.in_spec = _as_lists(entry.signature.in_spec)
            entry.signature.out_spec = _as_lists(entry.signature.out_spec)
    return changed


def _is_plain(spec: pytree.TreeSpec) -> bool:
    return spec.type in PLAIN and all(_is_plain(child) for child in spec.children())


def _as_lists(spec: pytree.TreeSpec) -> pytree.TreeSpec:
    if spec.is_leaf():
        return spec
    children = [_as_lists(child) for child in spec.children()]
    known = spec.type in PLAIN
    return pytree.TreeSpec(spec.type if known else list, spec.context if known else None, children)


def _shared(exported: ExportedProgram) -> dict[str, str]:
    """Input name of a constant -> input name of the buffer that is the same memory, seen the same way."""
    specs = exported.graph_signature.input_specs
    buffers: dict[tuple[Any, ...], str] = {}
    for spec in specs:
        if spec.kind is InputKind.BUFFER and (place := _place(exported, spec.target)) is not None:
            buffers.setdefault(place, spec.arg.name)
    places = {spec.arg.name: _place(exported, spec.target) for spec in specs if spec.kind is InputKind.CONSTANT_TENSOR}
    return {name: buffers[place] for name, place in places.items() if place in buffers}


def _place(exported: ExportedProgram, target: str | None) -> tuple[Any, ...] | None:
    """Where a tensor's elements are; None of one that has none."""
    tensor: Any = exported.state_dict.get(target or "", exported.constants.get(target or ""))
    if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided or not tensor.numel():
        return None
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _on_buffers(exported: ExportedProgram, shared: dict[str, str]) -> tuple[fx.GraphModule, ExportGraphSignature]:
    """A copy of the program's graph in which each shared constant's uses are its buffer's."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(exported.graph, copies))
    graph.output_node().meta = dict(exported.graph.output_node().meta)
    graph._codegen = exported.graph._codegen
    placeholders = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    for constant, buffer in shared.items():
        placeholders[constant].replace_all_uses_with(placeholders[buffer])
        graph.erase_node(placeholders[constant])
    module = fx.GraphModule(exported.graph_module, graph)
    module.meta = dict(exported.graph_module.meta)
    inputs = [spec for spec in exported.graph_signature.input_specs if spec.arg.name not in shared]
    return module, ExportGraphSignature(inputs, list(exported.graph_signature.output_specs))
