"""The compiled steps: the closed set of programs that the scheduler can ask for, and calling one of them.

Comes in: vLLM's config, the model with its weights, one dictionary of numpy inputs per step. Goes out: sampled
tokens. Guaranteed: after `compile` nothing is traced or compiled in this process; the KV caches stay on the device
and each step writes into their memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core import files, pjrt, seal
from ...core.bundle import Bundle
from ...core.cache import Cache
from ...core.errors import BundleError, FxhloError
from ...core.executable import Executable
from ...core.targets import Target
from .capture import capture_step
from .kinds import Bucket, StepResult, buckets
from .options import StepOptions
from .passes import step_passes

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig

Progress = Callable[[str], None]
NEUTRAL = {"allowed_mask": -1, "bias_ids": -1, "bias_values": 0, "seen_ids": -1, "seen_counts": 0}
"""Inputs that only some sampling parameters use, and what fills them where none does: that one stays on the device."""
RESULTS = 4
"""tokens and the three parts of the log-probabilities; the states follow."""
COMPILE_THREADS = 2


class Steps:
    """All programs of one engine, its weights and KV caches on the device."""

    def __init__(self, config: VllmConfig, build: Callable[[], torch.nn.Module], model: torch.nn.Module) -> None:
        self.config = config
        self.read_options()
        self.target = Target.parse("cpu")
        self._build = build
        self._model = model
        self._executables: dict[Bucket, Executable] = {}
        self._neutral: dict[tuple[Bucket, str], Any] = {}
        self._states: list[Any] = []
        self.num_blocks = 0

    @classmethod
    def prepare(cls, config: VllmConfig, model: torch.nn.Module, build: Callable[[], torch.nn.Module]) -> Steps:
        """model: with its weights; build: makes the model again without them, for capture."""
        return cls(config, build, model)

    # -- before serving --------------------------------------------------------------------------------------------

    def read_options(self) -> None:
        """Takes the sizes from the config; once more where vLLM changes it before the programs are made."""
        self.options = StepOptions.of(self.config)
        self.buckets = buckets(self.options.max_tokens, self.options.max_requests)

    def allocate(self, num_blocks: int) -> None:
        """Fixes the number of KV blocks; the caches themselves are made when the programs are there."""
        self.num_blocks = num_blocks

    def compile(self, progress: Progress = lambda message: None) -> None:
        """Loads or makes every program, places weights and caches, and seals the process."""
        key = self.key()
        cache_ = Cache()
        try:
            self._load(cache_, key, progress)
        except BundleError:  # damage that shows only where a program is read
            cache_.discard(key)
            self._load(cache_, key, progress)
        progress(f"{len(self.buckets)} programs loaded")
        self._place()
        seal.close("the engine is ready")

    def _load(self, cache_: Cache, key: dict[str, Any], progress: Progress) -> None:
        path = cache_.get(key)
        if path is None:
            path = cache_.put(key, lambda directory: self._make(directory, progress))
        bundle = Bundle.open(path)
        for bucket in self.buckets:
            self._executables[bucket] = bundle.executable(str(bucket), self.target)

    def key(self) -> dict[str, Any]:
        """Everything on which the programs depend, for the cache."""
        import jaxlib
        import torch
        import vllm

        from ...core import native

        model_config = self.config.model_config
        return {
            "model": json.loads(json.dumps(model_config.hf_config.to_dict(), default=str, sort_keys=True)),
            "class": type(self._model).__qualname__,
            "parameters": sorted(name for name, _ in self._model.named_parameters()),  # the files decide about some
            "dtype": str(model_config.dtype),
            "cache_dtype": self.config.cache_config.cache_dtype,
            "options": asdict(self.options),
            "buckets": [str(bucket) for bucket in self.buckets],
            "num_blocks": self.num_blocks,
            "target": str(self.target),
            "compiler": dict(self.target.compile_options),
            "native": native.identity(),
            "versions": {
                "torch": torch.__version__,
                "vllm": vllm.__version__,
                "jaxlib": jaxlib.__version__,
                "fxhlo": source_digest(),
            },
        }

    def _make(self, directory: Path, progress: Progress) -> None:
        """Captures once, emits and compiles every bucket, and writes the bundle."""
        from ....lowering.bundling import save_compiled
        from ....lowering.emit.coverage import check
        from ....lowering.emit.emit import emit
        from ....passes.pipeline import run
        from ...core import native

        progress("capturing the model")
        program = run(step_passes(self.options), capture_step(self.config, self._build()))
        check(program)
        modules: Iterable[Any] = (
            (
                str(bucket),
                emit(program, {"tokens": bucket.tokens, "requests": bucket.requests, "num_blocks": self.num_blocks}),
            )
            for bucket in self.buckets
        )
        if not native.ready():
            modules = list(modules)  # legalization asks for the native kernels: what can be done before comes first
        with ThreadPoolExecutor(COMPILE_THREADS) as pool:
            save_compiled(directory, modules, pool, lambda name, legalized: progress(f"compiled {name}"))

    def _place(self) -> None:
        """Weights once, without a copy where the device shares memory with the host; caches allocated as zeros."""
        from ....lowering.module import as_numpy

        device = pjrt.device(self.target)
        tensors = {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}
        first = next(iter(self._executables.values()))
        weights = {
            argument.name: device.put_shared(as_numpy(tensors[argument.name])) for argument in first.signature.weights
        }
        self._executables = {bucket: executable.bind(weights) for bucket, executable in self._executables.items()}
        self._states = first.zeros()
        for bucket, executable in self._executables.items():
            for argument in executable.arguments:
                if argument.name in NEUTRAL:
                    self._neutral[bucket, argument.name] = device.put(
                        np.full(argument.shape, NEUTRAL[argument.name], argument.dtype)
                    )
        self._device = device

    # -- serving ---------------------------------------------------------------------------------------------------

    def select(self, tokens: int, requests: int) -> Bucket:
        """The smallest program that holds so many tokens and requests."""
        for bucket in self.buckets:
            if bucket.tokens >= tokens and bucket.requests >= requests:
                return bucket
        raise FxhloError(
            f"no program for {tokens} tokens of {requests} requests; the largest is {self.buckets[-1]}",
            next_step="raise max_num_batched_tokens or max_num_seqs, and start again",
        )

    def step(self, bucket: Bucket, inputs: Mapping[str, np.ndarray], *, logprobs: bool) -> StepResult:
        """Runs one step; the inputs are padded to the bucket."""
        executable = self._executables[bucket]
        states = iter(self._states)
        buffers = []
        for argument in executable.arguments:
            if argument.kind == "state":
                buffers.append(next(states))
            elif argument.name in inputs:
                buffers.append(self._device.put(inputs[argument.name]))
            else:
                buffers.append(self._neutral[bucket, argument.name])
        results = executable.execute(buffers)
        self._states = results[RESULTS:]
        tokens = pjrt.get(results[0])
        return StepResult(tokens, tuple(pjrt.get(part) for part in results[1:RESULTS]) if logprobs else None)  # type: ignore[arg-type]


@cache
def source_digest() -> str:
    """A digest over fxhlo's own sources: a changed compiler makes other programs."""
    root = Path(__file__).parents[3]
    return files.sources_digest((root / folder for folder in ("kernels", "lowering", "passes", "runtime")), root)
