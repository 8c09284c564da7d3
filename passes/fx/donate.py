"""Donates the memory of each state argument to the result that is its new value, so that nothing is copied."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...runtime.core.errors import FxhloError
from ..base import Pass
from ..program import Program


@dataclass(frozen=True)
class Donate(Pass):
    """Pairs every state argument `x` with the result `x.updated`. Raises FxhloError for a state without one."""

    def __call__(self, program: Program) -> Program:
        states = {argument.name for argument in program.arguments if argument.kind == "state"}
        results = tuple(
            replace(result, updates=result.name.removesuffix(".updated"))
            if result.name.removesuffix(".updated") in states
            else result
            for result in program.results
        )
        dropped = states - {result.updates for result in results}
        if dropped:
            raise FxhloError(
                f"the program reads the state {', '.join(sorted(dropped))} and returns no new value for it",
                next_step="a pass lost the result that updates it: lower-model --print-after all shows where",
            )
        return replace(program, results=results)
