"""Runs passes in order and calls observers after each. Passes never print, time or verify; observers do.

An observer is called with (pass, program before, program after, seconds).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import IO

from .base import Pass
from .garbage import uncollected
from .program import Program

Observer = Callable[[Pass, Program, Program, float], None]


def run(passes: Iterable[Pass], program: Program, observers: Sequence[Observer] = ()) -> Program:
    """Applies `passes` one after the other."""
    with uncollected():
        for step in passes:
            start = perf_counter()
            after = step(program)
            seconds = perf_counter() - start
            for observer in observers:
                observer(step, program, after, seconds)
            program = after
    return program


def verify(step: Pass, before: Program, after: Program, seconds: float) -> None:
    """Raises AssertionError where a pass broke an invariant of the Program, or the graph is not well-formed."""
    try:
        after.check()
        after.graph.lint()
    except Exception as problem:
        raise AssertionError(f"the pass {step.name} broke the program: {problem}") from problem


@dataclass
class Timer:
    """Collects (pass name, seconds, nodes before, nodes after)."""

    rows: list[tuple[str, float, int, int]] = field(default_factory=list)

    def __call__(self, step: Pass, before: Program, after: Program, seconds: float) -> None:
        self.rows.append((step.name, seconds, len(before.graph.nodes), len(after.graph.nodes)))


@dataclass
class Printer:
    """Prints the graph after the named passes ("all" for every one)."""

    names: frozenset[str]
    out: IO[str] = field(default_factory=lambda: sys.stdout)

    def __call__(self, step: Pass, before: Program, after: Program, seconds: float) -> None:
        if step.name in self.names or "all" in self.names:
            print(f"// after {step.name}: {len(after.graph.nodes)} nodes\n{readable(after)}", file=self.out)


def readable(program: Program) -> str:
    """The graph as one line per node with its type."""
    lines = []
    names = {node: argument.name for node, argument in zip(program.placeholders, program.arguments, strict=True)}
    for node in program.graph.nodes:
        val = node.meta.get("val")
        type_ = (
            f" : {str(val.dtype).removeprefix('torch.')}[{', '.join(str(size) for size in val.shape)}]"
            if hasattr(val, "shape")
            else ""
        )
        if node.op == "placeholder":
            lines.append(f"%{node.name} = argument {names[node]}{type_}")
        elif node.op == "output":
            lines.append(f"return {', '.join(str(value) for value in node.args[0])}")
        elif node.op == "get_attr":
            lines.append(f"%{node.name} = attribute {node.target}{type_}")
        else:
            arguments = [str(arg) for arg in node.args] + [f"{key}={value}" for key, value in node.kwargs.items()]
            lines.append(f"%{node.name} = {node.target}({', '.join(arguments)}){type_}")
    return "\n".join(lines) + "\n"
