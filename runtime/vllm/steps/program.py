"""StepProgram: one compiled program of an engine with its weights, and how a step is started in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ....passes.step_inputs import HIDDEN, RESULTS
from ...core.executable import Executable
from ..pending import PendingStep
from ..placement import Placement
from .inputs import StepInputs
from .kinds import Bucket

if TYPE_CHECKING:
    from ...core.pjrt import Buffer


class StepProgram:
    """One compiled program with its weights, and the neutral inputs that it keeps on the device."""

    def __init__(self, executable: Executable, inputs: StepInputs, bucket: Bucket, placement: Placement) -> None:
        self.execute = executable.execute
        self.device = placement.device
        self.put = placement.device.put
        taken = {one.name for one in executable.arguments}
        wide = inputs.frame(bucket).wide()
        self._kept = {name: placement.kept(values) for name, values in wide.items() if name in taken}
        self._packed = inputs.packed(bucket, executable.signature)
        self._order = tuple(None if one.kind == "state" else one.name for one in executable.arguments)
        """For each argument of a call, the input's name; None is the next state."""
        signature = executable.signature
        names = [result.name for result in signature.results]
        self._results = tuple(self.results(names))
        self.states = len(signature.states)
        self._updates = tuple(names.index(f"{state.name}.updated") for state in signature.states)

    def results(self, names: Sequence[str]) -> list[tuple[str, int]]:
        """The results that a step is awaited for: their names and numbers. names: of all results, in order."""
        return [(name, names.index(name)) for name in (*RESULTS, HIDDEN) if name in names]

    def start(self, inputs: Mapping[str, np.ndarray], states: Sequence[Buffer]) -> tuple[PendingStep, list[Buffer]]:
        """Starts a step, which consumes the states. Returns its results and the states' new values."""
        remaining = iter(states)
        buffers = [next(remaining) if name is None else self.placed(name, inputs) for name in self._order]
        results = self.execute(buffers)
        pending = PendingStep({name: results[index] for name, index in self._results})
        return pending, [results[index] for index in self._updates]

    def placed(self, name: str, inputs: Mapping[str, Any]) -> Buffer:
        """The argument `name` of a step on the device."""
        packed = self._packed.get(name)
        if packed is not None:
            return self.put(packed.pack(inputs))
        return self.put(inputs[name]) if name in inputs else self._kept[name]
