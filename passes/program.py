"""Program: a captured model as an FX graph, with a name for everything that goes in and comes out.

Comes in: an FX graph of ATen and `fxhlo::` ops whose nodes carry fake tensors (`meta["val"]`), the user's
file and line (`meta["stack_trace"]`) and the module path (`meta["nn_module_stack"]`).
Guaranteed: one `Argument` per placeholder and one `Result` per output, in the graph's order; a Program is
never changed in place: a pass copies the graph and returns another Program.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import sympy
import torch
from torch import fx

from ..runtime.core.structure import Structure
from .torch_private import LazyGraphModule, copied_codegen

Kind = Literal["weight", "buffer", "constant", "input", "state"]


@dataclass(frozen=True)
class Argument:
    """What one placeholder stands for. `name` is the one in the module's signature."""

    name: str
    kind: Kind


@dataclass(frozen=True)
class Result:
    """What one output is. `updates` names the argument whose new value it is (a mutated input, buffer or state)."""

    name: str
    updates: str | None = None


@dataclass(frozen=True)
class Dim:
    """A symbolic dimension. `aliases` are further names by which a binding may call it; `hint` is the size seen at capture."""

    name: str
    symbol: sympy.Symbol
    minimum: int
    maximum: int | None
    hint: int | None = None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Guard:
    """An assumption that the capture made about symbolic dimensions, and the line that made it."""

    expression: sympy.Basic
    where: str | None
    internal: bool = False
    """Made by a kernel of torch, which may only have wanted to know whether a size is 1."""


@dataclass(frozen=True)
class Note:
    """Why a rewrite left `count` candidates as they were (`lower-model --explain`). where: file:line of the first."""

    rewrite: str
    reason: str
    count: int = 1
    where: str | None = None


@dataclass(frozen=True)
class Program:
    """A captured model. `tensors` holds the weights, buffers and constants by argument name (fake ones where
    the model was captured without weights)."""

    module: fx.GraphModule
    arguments: tuple[Argument, ...]
    results: tuple[Result, ...]
    dims: tuple[Dim, ...] = ()
    guards: tuple[Guard, ...] = ()
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    name: str = "main"
    notes: tuple[Note, ...] = ()
    structure: Structure | None = None
    """How the results that are no updates nest in what the module returned; its indices are those of `results`."""
    source: fx.GraphModule | None = None
    """The graph as it was exported, before its decomposition, where it has symbolic dimensions: it says what a size of 0 or 1 means."""

    @property
    def graph(self) -> fx.Graph:
        return self.module.graph

    @property
    def placeholders(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    @property
    def outputs(self) -> tuple[Any, ...]:
        """What the graph returns: a node or a number for each result."""
        return self.graph.output_node().args[0]  # type: ignore[return-value]

    def edited(self, edit: Callable[[fx.Graph], None], **changes: Any) -> Program:
        """A copy whose graph was changed by `edit`, with dead nodes removed; `changes` replaces other fields."""
        graph = fx.Graph()
        graph.set_codegen(copied_codegen(self.graph))
        copied: Any = graph.graph_copy(self.graph, val_map={}, return_output_node=True)
        values, old_output = copied
        new_output = graph.output(values)
        new_output.meta = copy.copy(old_output.meta)
        edit(graph)
        graph.eliminate_dead_code(is_impure_node=lambda node: node.op in {"placeholder", "output"})
        graph.lint()
        return replace(self, module=lazy_module(self.module, graph), **changes)

    def check(self) -> None:
        """Asserts what this file's docstring guarantees; for passes under test and the pipeline's verifier."""
        assert len(self.placeholders) == len(self.arguments), (len(self.placeholders), len(self.arguments))
        assert len({argument.name for argument in self.arguments}) == len(self.arguments), "argument names repeat"
        output = next(node for node in self.graph.nodes if node.op == "output")
        assert len(output.args[0]) == len(self.results), (len(output.args[0]), len(self.results))
        names = {argument.name for argument in self.arguments}
        for result in self.results:
            assert result.updates is None or result.updates in names, result
        for node in self.graph.nodes:
            valueless = node.op in {"output", "get_attr"} or not node.users  # an assertion, say
            assert valueless or "val" in node.meta, f"{node} carries no fake value"


def lazy_module(owner: torch.nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """`graph` with the attributes of `owner` that it names. Its Python is generated when it is first run: emission reads
    the graph and never runs it, and to generate and compile the code takes as long as emission does."""
    return LazyGraphModule(owner, graph)


_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def source_of(node: fx.Node) -> tuple[str, int] | None:
    """The user's file and line that made `node`: the innermost frame outside torch itself."""
    return _source(node.meta.get("stack_trace"))


@lru_cache(maxsize=4096)
def _source(trace: str | None) -> tuple[str, int] | None:
    frames = _FRAME.findall(trace or "")
    outside = [(file, int(line)) for file, line in frames if "/torch/" not in file and not file.startswith("<")]
    return outside[-1] if outside else None


def where(node: fx.Node) -> str | None:
    """`source_of` as "file:line", for errors."""
    return source_in(node.meta.get("stack_trace"))


def source_in(trace: str | None) -> str | None:
    """The user's file and line in a stack trace, as "file:line"."""
    source = _source(trace)
    return f"{source[0]}:{source[1]}" if source else None


def module_path(node: fx.Node) -> str:
    """The path of the module that made `node`, such as "model.layers.3.mlp"; empty at the top."""
    return next(reversed(module_paths(node)), "")


def module_paths(node: fx.Node) -> list[str]:
    """The paths of the modules whose calls made `node`, the outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return [_path(entry[0] if isinstance(entry, tuple) else entry) for entry in stack.values()]


def path_below(node: fx.Node, outer: str) -> str:
    """`module_path` from the module `outer` on, which called it; of a module that several share the caller's."""
    for path in reversed(module_paths(node)):
        if path == outer or path.startswith(f"{outer}."):
            return path[len(outer) + 1 :]
    return ""


@lru_cache(maxsize=4096)
def _path(path: object) -> str:
    """The path without torch.export's name for the outermost module."""
    return re.sub(r"^L\['self'\]\.?|^L__self___?", "", str(path))
