"""Programs: loads the programs of an engine, or captures one Program, compiles it for every bucket, and saves a bundle.

Comes in: vLLM's config and the model. Goes out: an Executable per bucket, without weights. Guaranteed: a second start of
the same engine captures and compiles nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from ....passes.hlo.plan import ONE_DEVICE, Plan
from ...core import files
from ...core.bundle import Bundle
from ...core.cache import Cache
from ...core.errors import BundleError
from ...core.executable import Executable
from ...core.targets import Target
from ..progress import Progress
from .kinds import Bucket
from .options import StepOptions
from .passes import step_passes

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig

    from ....lowering.module import HloModule
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

    def load(self, progress: Progress) -> dict[Bucket, Executable]:
        """Loads the programs from the cache; makes them first where they are missing."""
        key, kept = self.key(), Cache()
        try:
            found = self._load(kept, key, progress)
        except BundleError:  # damage that only reading a program shows
            kept.discard(key)
            found = self._load(kept, key, progress)
        progress(f"{len(found)} programs loaded")
        return found

    def _load(self, kept: Cache, key: dict[str, object], progress: Progress) -> dict[Bucket, Executable]:
        path = kept.get(key)
        if path is None:
            path = kept.put(key, lambda directory: self.make(directory, progress))
        bundle = Bundle.open(path)
        return {bucket: bundle.executable(str(bucket), self.target) for bucket in self.buckets}

    def key(self) -> dict[str, object]:
        """The cache's key: everything on which the programs depend."""
        import jaxlib
        import torch
        import vllm

        from ...core import native

        model_config = self.config.model_config
        return {
            # as text: a config may hold infinities, which JSON has no numbers for
            "model": json.dumps(model_config.hf_config.to_dict(), default=str, sort_keys=True),
            "class": type(self.model).__qualname__,
            "parameters": sorted(name for name, _ in self.model.named_parameters()),  # some depend on the weight files
            "dtype": str(model_config.dtype),
            "cache_dtype": self.config.cache_config.cache_dtype,
            "options": asdict(self.options),
            "buckets": [str(bucket) for bucket in self.buckets],
            **self.sizes,
            "target": str(self.target),
            "plan": self.plan.to_json(),
            "compiler": dict(self.target.compile_options),
            "native": native.identity(),
            "versions": {
                "torch": torch.__version__,
                "vllm": vllm.__version__,
                "jaxlib": jaxlib.__version__,
                "fxhlo": source_digest(),
            },
        }

    def make(self, directory: Path, progress: Progress) -> None:
        """Captures once, emits and compiles every bucket, and writes the bundle."""
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
        if not native.ready():
            if self.plan.mesh.devices == 1:
                modules = list(modules)  # emit all first: legalization waits for the native kernels' build
            progress("building the native kernels, once per machine")
            if self.plan.mesh.devices > 1:
                native.unavailable()  # builds them: partitioning, a part of emission, chooses kernels
        done = count(1)

        def say(name: str, legalized: object) -> None:
            progress(f"compiled {name}", done=next(done), of=len(self.buckets))

        with ThreadPoolExecutor(COMPILE_THREADS) as pool:
            save_compiled(directory, modules, pool, say)

    def _emitted(self, program: Program, bucket: Bucket) -> HloModule:
        """The program's module for a bucket; partitioned, where the plan has several devices."""
        from ....lowering.emit.emit import emit

        several = self.plan.mesh.devices > 1
        sizes = of_program(program, {**self.sizes, **dict(bucket.sizes)})
        module = emit(
            program, sizes, references=several
        )  # on a mesh another kernel, or none, may serve a device's part
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


@cache
def source_digest() -> str:
    """A digest of fxhlo's own sources: a changed compiler invalidates the programs."""
    root = Path(__file__).parents[3]
    return files.sources_digest((root / folder for folder in ("kernels", "lowering", "passes", "runtime")), root)
