"""Steps: the programs of an engine with its weights and states, and how one is started.

Guaranteed: after `prepare` nothing is traced or compiled in this process; states stay on the device, and each step writes
into their memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from ....passes.cache_groups import CacheGroup
from ....passes.step_inputs import HIDDEN, RESULTS
from ...core import seal
from ...core.cache import Cache
from ...core.executable import Executable
from .. import memory
from ..pending import PendingStep
from ..placement import Placement
from ..progress import Progress
from ..states.groups import placed
from ..states.last_tokens import LastTokens
from ..states.spec import Rows, StateSpec, check_states
from .engine_bundle import EngineBundle
from .inputs import StepInputs
from .kinds import Bucket, select
from .passes import step_passes
from .programs import Programs

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig

    from ...core.pjrt import Buffer


def prepare(
    config: VllmConfig,
    model: torch.nn.Module,
    build: Callable[[], torch.nn.Module],
    states: Sequence[StateSpec],
    groups: tuple[CacheGroup, ...],
    num_blocks: int,
    progress: Progress,
    placement: Placement,
    bundle: EngineBundle | None = None,
) -> Steps:
    """Loads or makes every program, checks their inputs, places weights and states, and seals the process.

    model: with its weights; build: builds it again without weights. states: of its layers. num_blocks: of each KV cache.
    placement: on the device, or the mesh, that the programs are made for. bundle: which has them; None: the cache.
    """
    made = Programs.of(config, model, build, groups, num_blocks, placement.target, placement.plan, bundle)
    options, sizes = made.options, made.sizes
    states = (*placed(states, groups), *((LastTokens.of(options.max_requests),) if options.feed else ()))
    on_host = placement.device.is_host
    kept = None if bundle is not None else Cache()
    with ThreadPoolExecutor(1) as beside:  # memory is cleared while the programs are read
        allocated = beside.submit(placement.states, states, sizes) if on_host else None
        executables = made.load(progress, kept)
    inputs = StepInputs.of(options, step_passes(options))
    for bucket, executable in executables.items():
        inputs.check(bucket, executable.signature)
        check_states(states, sizes, executable.signature)
    inputs = inputs.taken_by(executable.signature for executable in executables.values())
    if not on_host:
        memory.check_programs(
            (executable.memory for executable in executables.values()), memory.Room.of(placement.device)
        )
    first = executables[made.buckets[0]].signature
    weights = placement.weights(first.weights, model)
    programs = {
        bucket: StepProgram(executable.bind(weights), inputs, bucket, placement)
        for bucket, executable in executables.items()
    }
    buffers = placement.states(states, sizes) if allocated is None else allocated.result()
    by_name = {spec.name: (spec, buffer) for spec, buffer in zip(states, buffers, strict=True)}
    ordered = [by_name[state.name] for state in first.states]
    steps = Steps(programs, inputs, [buffer for _, buffer in ordered], [spec.rows for spec, _ in ordered], kept)
    seal.close("the engine is ready")
    return steps


class StepProgram:
    """One compiled program with its weights, and the neutral inputs that it keeps on the device."""

    def __init__(self, executable: Executable, inputs: StepInputs, bucket: Bucket, placement: Placement) -> None:
        self.execute = executable.execute
        self.put = placement.device.put
        self._kept = {name: placement.kept(values) for name, values in inputs.frame(bucket).wide().items()}
        self._packed = inputs.packed(bucket, executable.signature)
        self._order = tuple(None if one.kind == "state" else one.name for one in executable.arguments)
        """For each argument of a call, the input's name; None is the next state."""
        signature = executable.signature
        names = [result.name for result in signature.results]
        self._results = tuple((name, names.index(name)) for name in (*RESULTS, HIDDEN) if name in names)
        self._updates = tuple(names.index(f"{state.name}.updated") for state in signature.states)

    def start(self, inputs: Mapping[str, np.ndarray], states: Sequence[Buffer]) -> tuple[PendingStep, list[Buffer]]:
        """Starts a step, which consumes the states. Returns its results and the states' new values."""
        remaining = iter(states)
        buffers = [next(remaining) if name is None else self._placed(name, inputs) for name in self._order]
        results = self.execute(buffers)
        pending = PendingStep({name: results[index] for name, index in self._results})
        return pending, [results[index] for index in self._updates]

    def _placed(self, name: str, inputs: Mapping[str, np.ndarray]) -> Buffer:
        """The argument `name` of a step on the device."""
        packed = self._packed.get(name)
        if packed is not None:
            return self.put(packed.pack(inputs))
        return self.put(inputs[name]) if name in inputs else self._kept[name]


class Steps:
    """All programs of one engine, and its states. inputs: of a step. rows: for each state, who assigns its rows. kept: the cache that has
    the programs, which stay there as long as this engine runs."""

    def __init__(
        self,
        programs: Mapping[Bucket, StepProgram],
        inputs: StepInputs,
        states: list[Buffer],
        rows: Sequence[Rows],
        kept: Cache | None = None,
    ) -> None:
        self.inputs = inputs
        self.state_slots = "slots" in rows
        """Whether the model keeps a state per request."""
        self.feeds = "fed" in inputs.table
        """Whether a step takes the tokens of the one before from the device."""
        self.programs = programs
        self._kept = kept
        self._states = states
        self._in_slots = tuple(one != "blocks" for one in rows)
        """For each state, whether it has a row per request."""
        self._selected: dict[tuple[int, int], Bucket] = {}

    def select(self, tokens: int, requests: int) -> Bucket:
        """Returns the smallest program for these numbers of tokens and requests."""
        found = self._selected.get((tokens, requests))
        if found is None:
            found = select(tuple(self.programs), Bucket.of(tokens=tokens, requests=requests))
            self._selected[tokens, requests] = found
        return found

    def start(self, bucket: Bucket, inputs: Mapping[str, np.ndarray]) -> PendingStep:
        """Starts a step. inputs: of the bucket's shapes; omitted wide ones are neutral."""
        pending, self._states = self.programs[bucket].start(inputs, self._states)
        return pending

    def slot_states(self) -> tuple[np.ndarray, ...]:
        """The states that have a row per request, in order, as they are now: for `again` after a step."""
        return tuple(
            np.asarray(state) for state, in_slots in zip(self._states, self._in_slots, strict=True) if in_slots
        )

    def again(self, bucket: Bucket, inputs: Mapping[str, np.ndarray], before: Sequence[np.ndarray]) -> PendingStep:
        """Starts the last step once more. before: `slot_states` before it.

        A step moves these states on, so this one begins with copies of the earlier ones, and what it makes of them is dropped; caches
        are written with the values that they have.
        """
        program, remaining = self.programs[bucket], iter(before)
        earlier = [
            program.put(next(remaining)) if in_slots else state
            for state, in_slots in zip(self._states, self._in_slots, strict=True)
        ]
        pending, after = program.start(inputs, earlier)
        self._states = [
            now if in_slots else new for now, new, in_slots in zip(self._states, after, self._in_slots, strict=True)
        ]
        return pending
