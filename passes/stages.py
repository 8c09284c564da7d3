"""Cuts a step's Program at its layers into stages, each a Program of its own: pipeline parallelism.

Comes in: a Program after all passes, and for each layer, by its module's path, the stage. Goes out: a Program per stage. Guaranteed: called one
after the other the stages compute what the whole does. A value that a later stage reads is a result of the one that computes it, and an
input of the other, of the same name (`CARRIED`); each weight is an argument where it is read, and each state of one stage alone.

What depends on inputs alone (rows of a rotary table, parts of packed inputs), or on weights alone, is computed where it is read: a
transfer would wait for it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import getitem
from typing import Any

from torch import fx

from ..runtime.core.errors import UnsupportedError
from .program import Argument, Program, Result, lazy_module, module_paths, where
from .torch_private import copied_codegen

CARRIED = "carried."
"""What names of values begin with that go from stage to stage."""


def cut(program: Program, layers: Mapping[str, int], stages: int) -> tuple[Program, ...]:
    """The stages of `program`. layers: path of a layer's module -> its stage.

    Raises UnsupportedError where layers of different stages share a state.
    """
    if stages == 1:
        return (program,)
    return _Cut(program, layers, stages).stages()


@dataclass
class _Stage:
    """nodes: what is computed here alone. carried: values of earlier stages. given: values that later stages read."""

    nodes: set[fx.Node] = field(default_factory=set)
    carried: dict[fx.Node, None] = field(default_factory=dict)
    given: dict[fx.Node, None] = field(default_factory=dict)


class _Cut:
    def __init__(self, program: Program, layers: Mapping[str, int], stages: int) -> None:
        self.program = program
        self.layers = layers
        self.arguments = dict(zip(program.placeholders, program.arguments, strict=True))
        self.plain = _plain_nodes(program, self.arguments)
        """Nodes that each stage computes for itself."""
        self.stage: dict[fx.Node, int] = {}
        self._stages = [_Stage() for _ in range(stages)]

    def stages(self) -> tuple[Program, ...]:
        for node in self.program.graph.nodes:
            if node.op not in ("placeholder", "output") and node not in self.plain:
                self.stage[node] = self._stage_of(node)
                self._stages[self.stage[node]].nodes.add(node)
        self._check_states()
        for node, number in self.stage.items():
            for operand in node.all_input_nodes:
                self._carry(operand, number)
        last = len(self._stages) - 1
        results: list[list[tuple[Any, Result]]] = [[] for _ in self._stages]
        for value, result in zip(self.program.outputs, self.program.results, strict=True):
            results[self.stage.get(value, last)].append((value, result))
        return tuple(self._program(stage, found) for stage, found in zip(self._stages, results, strict=True))

    def _stage_of(self, node: fx.Node) -> int:
        """Not before what it reads, nor before its layer."""
        before = max((self.stage.get(operand, 0) for operand in node.all_input_nodes), default=0)
        if node.target is getitem:
            return before
        return max(before, next((self.layers[path] for path in module_paths(node) if path in self.layers), 0))

    def _carry(self, value: fx.Node, number: int) -> None:
        made = self.stage.get(value, number)
        if made < number:
            self._stages[made].given[value] = None
            self._stages[number].carried[value] = None

    def _check_states(self) -> None:
        """Raises UnsupportedError for a state that layers of several stages read and update."""
        pairs = zip(self.program.outputs, self.program.results, strict=True)
        updated = {result.updates: value for value, result in pairs if result.updates}
        for node, argument in self.arguments.items():
            if argument.kind != "state":
                continue
            touching = [*node.users, *([value, *value.users] if (value := updated.get(argument.name)) else [])]
            stages = {self.stage[one] for one in touching if one in self.stage}
            if len(stages) > 1:
                raise UnsupportedError(
                    f"layers in stages {', '.join(map(str, sorted(stages)))} of the pipeline share the state {argument.name}",
                    where=next((found for one in touching if (found := where(one))), None),
                    next_step="leave out --pipeline-parallel-size; where layers of several kinds share a cache's memory, "
                    "--disable-hybrid-kv-cache-manager gives each its own",
                )

    def _program(self, stage: _Stage, results: Sequence[tuple[Any, Result]]) -> Program:
        needed = self._needed(stage, (value for value, _ in results))
        placeholders = [node for node in self.arguments if node in needed]
        graph = fx.Graph()
        graph.set_codegen(copied_codegen(self.program.graph))
        made: dict[fx.Node, fx.Node] = {node: graph.node_copy(node) for node in placeholders}
        for number, value in enumerate(stage.carried):
            made[value] = graph.placeholder(f"carried_{number}")
            made[value].meta = {key: copy.copy(found) for key, found in value.meta.items() if key == "val"}
        for node in self.program.graph.nodes:
            if node in needed and node not in made:
                made[node] = graph.node_copy(node, made.__getitem__)
        values = [made[value] if isinstance(value, fx.Node) else value for value, _ in results]
        output = graph.output((*values, *(made[value] for value in stage.given)))
        output.meta = copy.copy(self.program.graph.output_node().meta)
        graph.lint()
        names = {self.arguments[node].name for node in placeholders}
        return replace(
            self.program,
            module=lazy_module(self.program.module, graph),
            arguments=(
                *(self.arguments[node] for node in placeholders),
                *(Argument(_name(value), "input") for value in stage.carried),
            ),
            results=(*(result for _, result in results), *(Result(_name(value)) for value in stage.given)),
            tensors={name: tensor for name, tensor in self.program.tensors.items() if name in names},
            structure=None,
            source=None,
        )

    def _needed(self, stage: _Stage, results: Iterable[Any]) -> set[fx.Node]:
        """The stage's nodes, and all that they need to be computed here: placeholders, and what is plain."""
        needed: set[fx.Node] = set()
        waiting = [*stage.nodes, *(value for value in results if isinstance(value, fx.Node))]
        while waiting:
            node = waiting.pop()
            if node not in needed:
                needed.add(node)
                waiting += (one for one in node.all_input_nodes if one not in stage.carried)
        return needed


def _plain_nodes(program: Program, arguments: Mapping[fx.Node, Argument]) -> set[fx.Node]:
    """Nodes that depend on inputs and tables alone, or on weights alone; and sizes, which are numbers once the program is bound."""
    inputs: set[fx.Node] = set()
    weights: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op == "output":
            continue
        if node.op == "placeholder":
            kind = arguments[node].kind
            inputs.update([node] if kind in ("input", "buffer", "constant") else ())
            weights.update([node] if kind in ("weight", "buffer", "constant") else ())
            continue
        operands = node.all_input_nodes
        if all(one in inputs for one in operands):
            inputs.add(node)
        if all(one in weights for one in operands):
            weights.add(node)
    return {node for node in inputs | weights if node.op != "placeholder"}


def _name(value: fx.Node) -> str:
    return f"{CARRIED}{value.name}"
