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
from ....passes.hlo.plan import Plan
from ...core import seal
from ...core.cache import Cache
from ...core.executable import Executable
from ...core.pjrt import HostCopy
from .. import memory
from ..pending import PendingStep
from ..placement import Placement
from ..places import Places
from ..progress import Progress
from ..states.groups import placed
from ..states.last_tokens import LastTokens
from ..states.spec import Rows, StateSpec, check_states
from .engine_bundle import EngineBundle
from .inputs import StepInputs
from .kinds import Bucket, select
from .passes import step_passes
from .pipeline import Pipeline, Stage
from .program import StepProgram
from .programs import Programs

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig

    from ...core.pjrt import Buffer
    from ...core.signature import Argument


def prepare(
    config: VllmConfig,
    model: torch.nn.Module,
    build: Callable[[], torch.nn.Module],
    states: Sequence[StateSpec],
    groups: tuple[CacheGroup, ...],
    sizes: Mapping[str, int],
    progress: Progress,
    places: Places,
    bundle: EngineBundle | None = None,
) -> Steps:
    """Loads or makes every program, checks their inputs, places weights and states, and seals the process.

    model: with its weights; build: builds it again without weights. states: of its layers. sizes: of the symbols in their shapes.
    places: the devices that the programs are made for, stage by stage. bundle: which has them; None: the cache.
    """
    stages = places.stages
    made = Programs.of(config, model, build, groups, sizes, places.target, places.plan, bundle, stages)
    options, sizes = made.options, made.sizes
    states = (*placed(states, groups), *((LastTokens.of(options.max_requests),) if options.feed else ()))
    on_host = places.device.is_host
    kept = None if bundle is not None else Cache()
    with ThreadPoolExecutor(1) as beside:  # memory is cleared while the programs are read
        early = on_host and stages.count == 1
        allocated = beside.submit(places.first.states, states, sizes) if early else None
        loaded = made.load(progress, kept)
    executables = loaded.steps
    inputs = _checked(executables, StepInputs.of(options, step_passes(options)), states, sizes, places.plan)
    if not on_host:
        for number, place in enumerate(places.each):
            needed = (parts[number].memory for parts in executables.values())
            memory.check_programs(needed, memory.Room.of(place.device))
    first = [part.signature for part in executables[made.buckets[0]]]
    weights = places.weights([one.weights for one in first], model)
    programs = {
        bucket: _program(
            [part.bind(mine) for part, mine in zip(parts, weights, strict=True)], inputs, bucket, places.each
        )
        for bucket, parts in executables.items()
    }
    specs = {spec.name: spec for spec in states}
    ordered = [[specs[state.name] for state in one.states] for one in first]
    if allocated is None:
        buffers = [one for place, mine in zip(places.each, ordered, strict=True) for one in place.states(mine, sizes)]
    else:
        by_name = dict(zip(specs, allocated.result(), strict=True))
        buffers = [by_name[spec.name] for spec in ordered[0]]
    rows = [spec.rows for mine in ordered for spec in mine]
    row_copy = None if loaded.row_copy is None else RowCopy(loaded.row_copy, places.first, first[0].states)
    steps = Steps(programs, inputs, buffers, rows, kept, depth=stages.count, row_copy=row_copy)
    seal.close("the engine is ready")
    return steps


def _checked(
    executables: Mapping[Bucket, Sequence[Executable]],
    inputs: StepInputs,
    states: Sequence[StateSpec],
    sizes: Mapping[str, int],
    plan: Plan,
) -> StepInputs:
    """Compares programs with the states of the layers, and with the inputs of a step. Returns the inputs that they take."""
    for bucket, parts in executables.items():
        for part in parts:
            inputs.check(bucket, part.signature)
        check_states(states, sizes, *(part.signature for part in parts), plan=plan)
    return inputs.taken_by(part.signature for parts in executables.values() for part in parts)


def _program(
    parts: Sequence[Executable], inputs: StepInputs, bucket: Bucket, places: Sequence[Placement]
) -> StepProgram | Pipeline:
    if len(parts) == 1:
        return StepProgram(parts[0], inputs, bucket, places[0])
    return Pipeline([Stage(part, inputs, bucket, place) for part, place in zip(parts, places, strict=True)])


class RowCopy:
    """The program that copies one row of the states that have one per request. states: of a step's programs, in order."""

    def __init__(self, executable: Executable, placement: Placement, states: Sequence[Argument]) -> None:
        self._execute = executable.bind({}).execute
        self._put = placement.device.put
        names = [state.name for state in states]
        self._places = tuple(names.index(state.name) for state in executable.signature.states)

    def __call__(self, states: Sequence[Buffer], source: int, target: int) -> list[Buffer]:
        """The states with row `source` in row `target` as well; consumes those that it copies in."""
        rows = [self._put(np.array(row, np.int32)) for row in (source, target)]
        copied = self._execute([*rows, *(states[place] for place in self._places)])
        after = list(states)
        for place, state in zip(self._places, copied, strict=True):
            after[place] = state
        return after


class Steps:
    """All programs of one engine, and its states. inputs: of a step. rows: for each state, who assigns its rows. kept: the cache that has
    the programs, which stay there as long as this engine runs. depth: stages of a pipeline, as many steps as may run at the same time.
    row_copy: where the states of prefixes are cached."""

    def __init__(
        self,
        programs: Mapping[Bucket, StepProgram | Pipeline],
        inputs: StepInputs,
        states: list[Buffer],
        rows: Sequence[Rows],
        kept: Cache | None = None,
        depth: int = 1,
        row_copy: RowCopy | None = None,
    ) -> None:
        self.inputs = inputs
        self._row_copy = row_copy
        self.state_slots = "slots" in rows
        """Whether the model keeps a state per request."""
        self.feeds = "fed" in inputs.table
        """Whether a step takes the tokens of the one before from the device."""
        self.programs = programs
        self._kept = kept
        self.depth = depth
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

    def copy_row(self, source: int, target: int) -> None:
        """Copies a row of the states that have one per request, before the next step."""
        assert self._row_copy is not None, "prefixes' states are cached"
        self._states = self._row_copy(self._states, source, target)

    def slot_states(self) -> tuple[HostCopy, ...]:
        """The states that have a row per request, in order, as they are now: for `again` after a step."""
        return tuple(
            HostCopy.of(state) for state, in_slots in zip(self._states, self._in_slots, strict=True) if in_slots
        )

    def again(self, bucket: Bucket, inputs: Mapping[str, np.ndarray], before: Sequence[HostCopy]) -> PendingStep:
        """Starts the last step once more. before: `slot_states` before it.

        A step moves these states on, so this one begins with copies of the earlier ones, and what it makes of them is dropped; caches
        are written with the values that they have.
        """
        program, remaining = self.programs[bucket], iter(before)
        earlier = [
            next(remaining).placed() if in_slots else state
            for state, in_slots in zip(self._states, self._in_slots, strict=True)
        ]
        pending, after = program.start(inputs, earlier)
        self._states = [
            now if in_slots else new for now, new, in_slots in zip(self._states, after, self._in_slots, strict=True)
        ]
        return pending
