"""Programs: loads the programs of an engine, or captures one Program, compiles it for every bucket, and saves a bundle.

Comes in: vLLM's config and the model. Goes out: an Executable per bucket, without weights. Guaranteed: a second start of
the same engine captures and compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ....passes.hlo.plan import ONE_DEVICE, Plan
from ...core.bundle import Bundle
from ...core.cache import Cache
from ...core.errors import BundleError
from ...core.executable import Executable
from ...core.targets import Target
from ..progress import Saying
from ..pulse import Pulse
from ..stages import ONE_STAGE, Stages
from .engine_bundle import NOTE, EngineBundle, executables
from .identity import of_options, of_programs
from .kinds import Bucket
from .options import StepOptions
from .passes import step_passes
from .planning.engine import closed_set
from .planning.proof import prove

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig

    from ....lowering.bundling import Entry, Finished
    from ....passes.cache_groups import CacheGroup
    from ....passes.program import Program

COMPILE_THREADS = 2
COMPILING = "compiling {}"
"""What is told of a program by its name, from when it was emitted."""
ROW_COPY = "row_copy"
"""The program that copies a row of the states."""


class Loaded(NamedTuple):
    """steps: for each bucket the program's stages. row_copy: the program that copies a row of the states, where those of prefixes are cached."""

    steps: dict[Bucket, tuple[Executable, ...]]
    row_copy: Executable | None


@dataclass(frozen=True)
class Programs:
    """The programs of one engine.

    model: with its weights. build: builds it again without weights, for capture. sizes: of the symbols that all programs
    share, such as `num_blocks`; a program may lack some. plan: how weights and states lie, where there are several devices.
    """

    config: VllmConfig
    model: torch.nn.Module
    build: Callable[[], torch.nn.Module]
    options: StepOptions
    buckets: tuple[Bucket, ...]
    sizes: Mapping[str, int]
    target: Target
    plan: Plan = ONE_DEVICE
    bundle: EngineBundle | None = None
    """Where the programs are, made ahead of time; None: in the cache."""
    stages: Stages = ONE_STAGE
    """Of a pipeline: each program is cut at its layers. `plan` is the first stage's."""

    @classmethod
    def of(
        cls,
        config: VllmConfig,
        model: torch.nn.Module,
        build: Callable[[], torch.nn.Module],
        groups: tuple[CacheGroup, ...],
        sizes: Mapping[str, int],
        target: Target,
        plan: Plan = ONE_DEVICE,
        bundle: EngineBundle | None = None,
        stages: Stages = ONE_STAGE,
    ) -> Programs:
        """The closed set of an engine's programs: a bundle's own, or the plan's. Raises FxhloError where a step would have none.

        groups: vLLM's, of the model's layers; sizes: of the symbols that all programs share.
        """
        options = StepOptions.of_engine(config, groups, target)
        if bundle is None:
            buckets = closed_set(config, options.limits, target)
        else:
            bundle.check({"options": of_options(options)}, whole=False)
            buckets = bundle.buckets
            prove(buckets, options.limits)
        sizes = {**sizes, "num_blocks": plan.blocks(sizes["num_blocks"])}
        return cls(config, model, build, options, buckets, sizes, target, plan, bundle, stages)

    def load(self, progress: Saying, kept: Cache | None = None) -> Loaded:
        """Loads the programs, stage by stage, from the bundle, or the cache; makes them first where they are missing there. Raises
        BundleError.

        kept: the cache; as long as it lives, nobody else's engine collects these programs.
        """
        if self.bundle is not None:
            self.bundle.check(self.key())
            found = self._each(self.bundle.executables)
            progress(f"{len(found.steps)} programs loaded from {self.bundle.bundle.path}")
            return found
        key, kept = self.key(), kept or Cache()
        try:
            found = self._load(kept, key, progress)
        except BundleError:  # damage that only reading a program shows
            kept.discard(key)
            found = self._load(kept, key, progress)
        progress(f"{len(found.steps)} programs loaded")
        return found

    def _each(self, load: Callable[[Sequence[str]], list[Executable]]) -> Loaded:
        count, names = self.stages.count, [name for bucket in self.buckets for name in self.names(bucket)]
        found = load([*names, *self._others])
        steps = {bucket: tuple(found[at * count : (at + 1) * count]) for at, bucket in enumerate(self.buckets)}
        return Loaded(steps, found[-1] if self._others else None)

    @property
    def _others(self) -> tuple[str, ...]:
        """The programs besides those of the buckets: the one that copies a row of the states, where those of prefixes are cached."""
        return (ROW_COPY,) if self.options.cached_states else ()

    @property
    def count(self) -> int:
        """How many programs there are, each stage counted."""
        return len(self.buckets) * self.stages.count + len(self._others)

    def names(self, bucket: Bucket) -> list[str]:
        """The names of a program's stages; its own, where it is not cut."""
        count = self.stages.count
        return [f"{bucket},stage={stage}" for stage in range(count)] if count > 1 else [str(bucket)]

    def _load(self, kept: Cache, key: dict[str, object], progress: Saying) -> Loaded:
        path = kept.get(key)
        if path is None:
            path = kept.put(key, lambda directory: self.make(directory, progress))
        bundle = Bundle.open(path)
        return self._each(lambda names: executables(bundle, names, self.target))

    def key(self) -> dict[str, object]:
        """The cache's key, and a bundle's identity: everything on which the programs depend."""
        return {
            **of_programs(self.config, self.model, self.options, self.buckets, self.sizes, self.target),
            "plan": self.plan.to_json(),
            **({"stages": self.stages.to_json()} if self.stages.count > 1 else {}),
        }

    def make(
        self, directory: Path, progress: Saying, watch: Callable[[Finished], None] | None = None, *, carry: bool = False
    ) -> None:
        """Captures once, emits and compiles every bucket, and writes the bundle. watch: called after each program. carry: whether the
        bundle has the library of the native kernels that its programs call."""
        from ....lowering.bundling import save_compiled
        from ....lowering.emit.coverage import check
        from ....passes.pipeline import run
        from ...core import native
        from .capture import capture_step

        done = count(1)
        with Pulse(progress) as pulse, ThreadPoolExecutor(COMPILE_THREADS) as pool:
            pulse("capturing the model")
            with pulse.at("capturing"):
                captured = capture_step(self.config, self.build())
            pulse("running the passes")
            with pulse.at("running the passes"):
                program = run(step_passes(self.options), captured)
            check(program)
            pulse(f"emitting and compiling {self.count} programs")
            if self.target.family == "cpu" and not native.ready():
                pulse("building the native kernels, once per machine")
                with pulse.at("building the native kernels"):
                    native.unavailable()  # builds them, or finds out why not: kernels are chosen by that

            def say(one: Finished) -> None:
                pulse.ends(COMPILING.format(one.name))
                pulse(f"compiled {one.name}", done=next(done), of=self.count)
                if watch is not None:
                    watch(one)

            library = native.library if carry and self.target.family == "cpu" else None
            save_compiled(
                directory,
                _told(self._entries(program), pulse),
                pool,
                say,
                {NOTE: self.key()},
                library and (lambda: library().read_bytes()),
            )

    def _entries(self, program: Program) -> Iterator[tuple[str, Entry]]:
        """Each program's name and entry."""
        from ....passes.stages import cut
        from .row_copy import row_copy

        stages = list(
            zip(cut(program, self.stages.layers, self.stages.count), self.stages.plans(self.plan), strict=True)
        )
        emissions, entry = [self._emission(part, plan) for part, plan in stages], None
        for bucket in self.buckets:
            for name, emission in zip(self.names(bucket), emissions, strict=True):
                entry = emission(dict(bucket.sizes))
                yield name, entry
        if self.options.cached_states and entry is not None:
            slots = dict(self.options.state_dtypes)
            copied = row_copy([one for one in entry.signature.states if one.name in slots])
            yield ROW_COPY, self._emission(copied, self.plan)({})

    def _emission(self, program: Program, plan: Plan) -> Callable[[dict[str, int]], Entry]:
        """The program's entry for the sizes of a bucket; partitioned, where the plan has several devices."""
        if plan.mesh.devices > 1:
            return partial(self._partitioned, program, plan)
        from ....lowering.buckets import Buckets

        buckets = Buckets(program, self.target, of_program(program, self.sizes))

        def entry(sizes: dict[str, int]) -> Entry:
            made = buckets.entry(of_program(program, sizes))
            return made._replace(signature=replace(made.signature, mesh=plan.mesh))

        return entry

    def _partitioned(self, program: Program, plan: Plan, sizes: dict[str, int]) -> Entry:
        from ....lowering.bundling import Entry
        from ....lowering.compiling import legalized_to_run
        from ....lowering.emit.emit import emit
        from ....passes.hlo.partition import partition
        from ....passes.mlir import bytecode

        # with references: on a mesh another kernel, or none, may serve a device's part
        module = replace(emit(program, of_program(program, {**self.sizes, **sizes})), target=str(self.target))
        made = partition(bytecode(module.module), module.signature, plan, self.target)
        return Entry.of(replace(module, module=made.module, signature=made.signature), legalized_to_run)


def _told(entries: Iterator[tuple[str, Entry]], pulse: Pulse) -> Iterator[tuple[str, Entry]]:
    """The entries, each of which is being emitted until it is there, and then compiled."""
    for number in count(1):
        with pulse.at(f"emitting program {number}"):
            found = next(entries, None)
        if found is None:
            return
        pulse.begins(COMPILING.format(found[0]))
        yield found


def of_program(program: Program, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes of the program's dimensions: one without a cache has no `num_blocks`."""
    names = {dim.name for dim in program.dims}
    return {name: size for name, size in sizes.items() if name in names}
