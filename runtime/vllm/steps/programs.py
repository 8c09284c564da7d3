"""Programs: loads the programs of an engine, or captures one Program, compiles it for every bucket, and saves a bundle.

Comes in: vLLM's config and the model. Goes out: an Executable per bucket, without weights. Guaranteed: a second start of
the same engine captures and compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from ....passes.hlo.plan import ONE_DEVICE, Plan
from ...core.bundle import Bundle
from ...core.cache import Cache
from ...core.errors import BundleError
from ...core.executable import Executable
from ...core.targets import Target
from ..progress import Saying
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

    from ....lowering.bundling import Finished
    from ....lowering.module import HloModule
    from ....passes.cache_groups import CacheGroup
    from ....passes.program import Program

COMPILE_THREADS = 2


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

    @classmethod
    def of(
        cls,
        config: VllmConfig,
        model: torch.nn.Module,
        build: Callable[[], torch.nn.Module],
        groups: tuple[CacheGroup, ...],
        num_blocks: int,
        target: Target,
        plan: Plan = ONE_DEVICE,
        bundle: EngineBundle | None = None,
    ) -> Programs:
        """The closed set of an engine's programs: a bundle's own, or the plan's. Raises FxhloError where a step would have none.

        groups: vLLM's, of the model's layers; num_blocks: of each KV cache.
        """
        options = StepOptions.of_engine(config, groups, target)
        if bundle is None:
            buckets = closed_set(config, options.limits, target)
        else:
            bundle.check({"options": of_options(options)}, whole=False)
            buckets = bundle.buckets
            prove(buckets, options.limits)
        sizes = {"num_blocks": num_blocks, "num_slots": options.slots}
        return cls(config, model, build, options, buckets, sizes, target, plan, bundle)

    def load(self, progress: Saying, kept: Cache | None = None) -> dict[Bucket, Executable]:
        """Loads the programs from the bundle, or the cache; makes them first where they are missing there. Raises BundleError.

        kept: the cache; as long as it lives, nobody else's engine collects these programs.
        """
        if self.bundle is not None:
            self.bundle.check(self.key())
            found = self.bundle.executables(self.buckets)
            progress(f"{len(found)} programs loaded from {self.bundle.bundle.path}")
            return found
        key, kept = self.key(), kept or Cache()
        try:
            found = self._load(kept, key, progress)
        except BundleError:  # damage that only reading a program shows
            kept.discard(key)
            found = self._load(kept, key, progress)
        progress(f"{len(found)} programs loaded")
        return found

    def _load(self, kept: Cache, key: dict[str, object], progress: Saying) -> dict[Bucket, Executable]:
        path = kept.get(key)
        if path is None:
            path = kept.put(key, lambda directory: self.make(directory, progress))
        return executables(Bundle.open(path), self.buckets, self.target)

    def key(self) -> dict[str, object]:
        """The cache's key, and a bundle's identity: everything on which the programs depend."""
        return {
            **of_programs(self.config, self.model, self.options, self.buckets, self.sizes, self.target),
            "plan": self.plan.to_json(),
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

        progress("capturing the model")
        captured = capture_step(self.config, self.build())
        progress("running the passes")
        program = run(step_passes(self.options), captured)
        check(program)
        progress(f"emitting and compiling {len(self.buckets)} programs")
        modules: Iterable[tuple[str, HloModule]] = (
            (str(bucket), self._emitted(program, bucket)) for bucket in self.buckets
        )
        if self.target.family == "cpu" and not native.ready():
            if self.plan.mesh.devices == 1:
                modules = list(modules)  # emit all first: legalization waits for the native kernels' build
            progress("building the native kernels, once per machine")
            if self.plan.mesh.devices > 1:
                native.unavailable()  # builds them: partitioning, a part of emission, chooses kernels
        done = count(1)

        def say(one: Finished) -> None:
            progress(f"compiled {one.name}", done=next(done), of=len(self.buckets))
            if watch is not None:
                watch(one)

        with ThreadPoolExecutor(COMPILE_THREADS) as pool:
            library = native.library if carry and self.target.family == "cpu" else None
            save_compiled(
                directory, modules, pool, say, {NOTE: self.key()}, library and (lambda: library().read_bytes())
            )

    def _emitted(self, program: Program, bucket: Bucket) -> HloModule:
        """The program's module for a bucket; partitioned, where the plan has several devices."""
        from ....lowering.emit.emit import emit

        several = self.plan.mesh.devices > 1
        sizes = of_program(program, {**self.sizes, **dict(bucket.sizes)})
        # on a mesh another kernel, or none, may serve a device's part
        module = replace(emit(program, sizes, references=several), target=str(self.target))
        if not several:
            return module
        from ....passes.hlo.partition import partition
        from ....passes.mlir import bytecode

        made = partition(bytecode(module.module), module.signature, self.plan, self.target)
        return replace(module, module=made.module, signature=made.signature)


def of_program(program: Program, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes of the program's dimensions: one without a cache has no `num_blocks`."""
    names = {dim.name for dim in program.dims}
    return {name: size for name, size in sizes.items() if name in names}
