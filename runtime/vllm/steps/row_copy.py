"""The program that copies one row of the states that have one per request: what a step needs that leaves an earlier state where it is.

It runs before a step, and only where one needs it: the steps' own programs are those of an engine that caches no prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ....lowering.capture.callable import Input, capture_callable
from ....passes.fx.donate import Donate
from ....passes.program import Program
from ...core.signature import Argument

NAME = "row_copy"
ROWS = ("row_from", "row_to")
"""The inputs, int32 scalars."""


def row_copy(states: Sequence[Argument]) -> Program:
    """(row_from, row_to, *states) -> the states, each with row `row_from` in row `row_to` as well. states: of a step's program."""
    inputs = [Input(name, (), torch.int32) for name in ROWS]
    kept = [Input(state.name, state.shape, getattr(torch, state.dtype)) for state in states]
    results = [f"{state.name}.updated" for state in states]
    captured = capture_callable(_copied, torch.nn.Module(), [*inputs, *kept], {}, results=results, name=NAME)
    names = {state.name for state in states}
    arguments = tuple(replace(one, kind="state") if one.name in names else one for one in captured.arguments)
    return Donate()(replace(captured, arguments=arguments))


def _copied(source: torch.Tensor, target: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(torch.ops.fxhlo.copy_row(state, source, target) for state in states)
