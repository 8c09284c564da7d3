"""Pipeline: a step's program in stages, each on devices of its own, called like one program.

Guaranteed: a step is started stage by stage without waiting, so that stages of several steps run at the same time; what a stage reads
of an earlier one is sent from device to device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ....passes.stages import CARRIED
from ..pending import PendingStep
from .program import StepProgram

if TYPE_CHECKING:
    from ...core.pjrt import Buffer


class Stage(StepProgram):
    """One stage: a program that also takes values of earlier ones, and gives some to later ones."""

    def results(self, names: Sequence[str]) -> list[tuple[str, int]]:
        given = [(name, index) for index, name in enumerate(names) if name.startswith(CARRIED)]
        return [*super().results(names), *given]

    def placed(self, name: str, inputs: Mapping[str, Any]) -> Buffer:
        return self.device.received(inputs[name]) if name.startswith(CARRIED) else super().placed(name, inputs)


class Pipeline:
    """The stages of one program, in order. The states of a step are those of the first stage, then of the second, and so on."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = stages

    def start(self, inputs: Mapping[str, np.ndarray], states: Sequence[Buffer]) -> tuple[PendingStep, list[Buffer]]:
        """Starts a step, which consumes the states. Returns its results and the states' new values."""
        known: dict[str, Any] = dict(inputs)
        results: dict[str, Buffer] = {}
        updated: list[Buffer] = []
        for stage in self._stages:
            made, after = stage.start(known, states[len(updated) : len(updated) + stage.states])
            known |= made.results
            results |= {name: value for name, value in made.results.items() if not name.startswith(CARRIED)}
            updated += after
        return PendingStep(results), updated
