"""Adds inputs of a step, states and sizes to a program: what the passes that give layers their states are written with.

Several passes may ask for the same input or size: it is added once and shared by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import fx

from ..runtime.core.errors import UnsupportedError
from .edit import add_placeholder, new_symbol, outputs_of
from .program import Argument, Dim, Program, Result
from .step_inputs import StepInput

HINTS = {"num_blocks": 131, "num_slots": 137, "requests": 139}
"""For each size that a pass may add, the number with which Python branches on shapes are decided: it equals no other size."""


def extended(program: Program, edit: Callable[[fx.Graph, Extension], None]) -> Program:
    """A copy of the program whose graph was changed by `edit`, and whose signature has what `edit` added to it."""
    made: list[Extension] = []

    def change(graph: fx.Graph) -> None:
        extension = Extension(program, graph)
        made.append(extension)
        edit(graph, extension)
        graph.output_node().args = ((*outputs_of(graph), *extension.updates),)

    edited = program.edited(change)
    (extension,) = made
    return replace(
        edited,
        arguments=(*program.arguments, *extension.arguments),
        results=(*program.results, *extension.results),
        dims=(*program.dims, *extension.dims),
    )


class Extension:
    """What one pass adds to the signature of `program`; its graph is being edited."""

    def __init__(self, program: Program, graph: fx.Graph) -> None:
        self.arguments: list[Argument] = []
        self.results: list[Result] = []
        self.dims: list[Dim] = []
        self.updates: list[fx.Node] = []
        self._program, self._graph = program, graph
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        self._nodes = {argument.name: node for argument, node in zip(program.arguments, placeholders, strict=True)}
        self._sizes: dict[str, torch.SymInt] = {}

    def size(self, name: str) -> torch.SymInt:
        """The symbolic size `name`: the program's, or one of HINTS, which is added where the program has none.

        Raises UnsupportedError where the model's Python made a number of it.
        """
        if name not in self._sizes:
            known = name in {dim.name for dim in self._program.dims}
            self._sizes[name] = self._of_program(name) if known else self._new(name)
        return self._sizes[name]

    def _of_program(self, name: str) -> torch.SymInt:
        """Taken from a value that has it: an argument itself where nothing else does."""
        symbol = next(dim.symbol for dim in self._program.dims if dim.name == name)
        for node in self._graph.nodes:
            val = node.meta.get("val")
            for size in (val,) if isinstance(val, torch.SymInt) else getattr(val, "shape", ()):
                if isinstance(size, torch.SymInt) and size.node.expr == symbol:
                    return size
        raise UnsupportedError(
            f"the model's Python fixes the number of {name} while it is captured",
            next_step="serve this model on another platform of vLLM; it would need a program for every size",
        )

    def _new(self, name: str) -> torch.SymInt:
        size = new_symbol(self._graph, name, HINTS[name], 1, None)
        self.dims.append(Dim(name, size.node.expr, 1, None, HINTS[name]))
        return size

    def inputs(self, table: Sequence[StepInput], sizes: Mapping[str, int]) -> list[fx.Node]:
        """The placeholder of each input, in order. sizes: of the symbols in their shapes, besides tokens and requests."""
        new = any(one.name not in self._nodes for one in table)
        symbols = {name: self.size(name) for name in ("tokens", "requests")} if new else {}
        return [self._input(one, {**symbols, **sizes}) for one in table]

    def _input(self, one: StepInput, sizes: Mapping[str, int | torch.SymInt]) -> fx.Node:
        if one.name not in self._nodes:
            self._nodes[one.name] = self._add(one.name, one.shape_in(sizes), getattr(torch, one.dtype))
            self.arguments.append(Argument(one.name, "input"))
        return self._nodes[one.name]

    def state(self, name: str, shape: Sequence[int | torch.SymInt], dtype: torch.dtype) -> fx.Node:
        """A new state; `update` gives its new value."""
        self.arguments.append(Argument(name, "state"))
        return self._add(name, shape, dtype)

    def update(self, name: str, value: fx.Node) -> None:
        """Makes `value` the new value of the state `name`."""
        self.results.append(Result(f"{name}.updated"))
        self.updates.append(value)

    def _add(self, name: str, shape: Sequence[int | torch.SymInt], dtype: torch.dtype) -> fx.Node:
        return add_placeholder(self._graph, name, shape, dtype)
