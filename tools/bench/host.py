"""The host's share of a step: how long a device waits between two steps, one step at a time and one step ahead.

The device is simulated: its programs are dispatched through PJRT with the arguments and results of the real ones, do nothing,
and their results count as there when a device that takes one of `DEVICE_MS` a step would have them. Nothing but the host is measured.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

if TYPE_CHECKING:
    from ...runtime.core.executable import Executable
    from ...runtime.core.pjrt import Buffer, Loaded
    from ...runtime.core.signature import Signature

DEVICE_MS = (4.0, 2.0, 1.0)
"""Milliseconds of a device's step: longer than the host takes, as on an accelerator a model of some size is, about as long, and shorter."""
REQUESTS = (1, 8, 32)
WARM, STEPS = 20, 150
"""Decode steps before measuring, and measured."""


@dataclass(frozen=True)
class Host:
    """Microseconds at a number of requests, medians over steps. ahead: asynchronous scheduling. step: milliseconds of a device's step.

    gap: from the end of a device's step to the start of its next. host: what the host works in a step. ours: fxhlo's part of that; the
    rest is vLLM's scheduler.
    """

    requests: int
    ahead: bool
    step: float
    gap: float
    host: float
    ours: float


class Device:
    """When a device that runs one program after the other would begin and end each."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """Of each program that begins from now on."""
        self.spans: list[tuple[float, float]] = []
        self.waited = 0.0
        """Seconds that the host slept."""

    def start(self) -> float:
        """Starts a program now, or behind the last one; returns when it ends."""
        begin = max(perf_counter(), self.spans[-1][1] if self.spans else 0.0)
        self.spans.append((begin, begin + self.seconds))
        return begin + self.seconds

    def wait(self, until: float) -> None:
        begun = perf_counter()
        if until > begun:
            time.sleep(until - begun)
            self.waited += perf_counter() - begun

    def gaps(self, first: int) -> list[float]:
        """Seconds without a program before each step from `first` on."""
        return [self.spans[index][0] - self.spans[index - 1][1] for index in range(first, len(self.spans))]


class Late:
    """A result that is read once its program has ended."""

    def __init__(self, device: Device, ready: float, buffer: Buffer) -> None:
        self._device, self._ready, self._buffer = device, ready, buffer

    def copy_to_host_async(self) -> None:
        self._buffer.copy_to_host_async()

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        self._device.wait(self._ready)
        return np.asarray(self._buffer)


class Idle:
    """In place of a `pjrt.Loaded`: one that does nothing."""

    def __init__(self, loaded: Loaded, signature: Signature, simulated: Device) -> None:
        self._loaded, self._simulated = loaded, simulated
        self.device, self.target, self.memory = loaded.device, loaded.target, loaded.memory
        self._late = [result.alias is None for result in signature.results]

    def execute(self, buffers: Sequence[Buffer]) -> list[Any]:
        results, ready = self._loaded.execute(buffers), self._simulated.start()
        return [
            Late(self._simulated, ready, result) if late else result
            for late, result in zip(self._late, results, strict=True)
        ]


def measure(model: Path, dtype: Any, say: Callable[[str], None]) -> list[Host]:
    """Serves the model's batch in this process: an engine for each way of scheduling. One step at a time the device waits for all that the
    host works, whatever its own step takes; one step ahead it waits for what its step does not cover."""
    rows = []
    for ahead in (False, True):
        device = Device()
        with _engine(model, dtype, ahead, device) as llm:
            for requests, step in product(REQUESTS, DEVICE_MS if ahead else DEVICE_MS[:1]):
                rows.append(_decode(llm, device, requests, ahead, step))
                row = rows[-1]
                say(
                    f"{requests} requests, {'one step ahead' if ahead else 'one step at a time'}, beside a device that takes {step:g} ms: "
                    f"it waits {row.gap:,.0f} us, the host works {row.host:,.0f}, of which {row.ours:,.0f} are fxhlo's"
                )
    return rows


def table(rows: Sequence[Host]) -> Table:
    """A row per number of requests."""
    made = Table(
        "requests", "device waits, one step at a time", *(f"one step ahead, of {step:g} ms" for step in DEVICE_MS), "host works", "of it fxhlo",
        title="The host's share of a decode step",
    )  # fmt: skip
    for requests in sorted({row.requests for row in rows}):
        (waits,) = (row.gap for row in rows if row.requests == requests and not row.ahead)
        ahead = {row.step: row for row in rows if row.requests == requests and row.ahead}
        first = ahead[DEVICE_MS[0]]
        shown = (waits, *(ahead[step].gap for step in DEVICE_MS), first.host, first.ours)
        made.add_row(str(requests), *(f"{one:,.0f} us" for one in shown))
    return made


@contextmanager
def _engine(model: Path, dtype: Any, ahead: bool, device: Device) -> Iterator[Any]:
    """An engine in this process whose programs are idle ones."""
    from unittest.mock import patch

    from ...runtime.vllm.steps.programs import Programs

    load = Programs.load

    def idle(programs: Programs, *args: Any) -> Any:
        loaded = load(programs, *args)
        steps = {bucket: tuple(_idle(one, device) for one in parts) for bucket, parts in loaded.steps.items()}
        return loaded._replace(steps=steps)

    with patch.dict(os.environ, VLLM_ENABLE_V1_MULTIPROCESSING="0"), patch.object(Programs, "load", idle):
        from vllm import LLM

        llm = LLM(
            str(model), dtype=dtype, max_model_len=512, max_num_seqs=max(REQUESTS), max_num_batched_tokens=1024, seed=0,
            enable_prefix_caching=False, disable_log_stats=True, skip_tokenizer_init=True, async_scheduling=ahead,
        )  # fmt: skip
        try:
            yield llm
        finally:
            llm.llm_engine.engine_core.shutdown()


def _idle(executable: Executable, simulated: Device) -> Executable:
    """A program with the signature of `executable` that returns its states as they are, and zeros."""
    from ...runtime.core import pjrt
    from ...runtime.core.executable import Executable

    signature = executable.signature
    loaded = pjrt.compile(_module(signature), executable.loaded.target)
    return Executable(Idle(loaded, signature, simulated), signature)  # type: ignore[arg-type]


def _module(signature: Signature) -> str:
    types = [_type(one.shape, one.dtype) for one in signature.arguments]
    alias = [
        f" {{tf.aliasing_output = {one.alias} : i32}}" if one.alias is not None else "" for one in signature.arguments
    ]
    arguments = ", ".join(f"%arg{index}: {type_}{alias[index]}" for index, type_ in enumerate(types))
    results = [_type(one.shape, one.dtype) for one in signature.results]
    names = [f"%r{index}" if one.alias is None else f"%arg{one.alias}" for index, one in enumerate(signature.results)]
    zeros = "\n".join(
        f"{name} = stablehlo.constant dense<{'0.0' if 'float' in one.dtype else '0'}> : {type_}"
        for name, one, type_ in zip(names, signature.results, results, strict=True)
        if one.alias is None
    )
    returned = f"{', '.join(names)} : {', '.join(results)}"
    return f"module @idle {{ func.func public @main({arguments}) -> ({', '.join(results)}) {{\n{zeros}\nreturn {returned} }} }}"


def _type(shape: Sequence[int], dtype: str) -> str:
    from ...runtime.core.dtypes import DTYPES

    return f"tensor<{''.join(f'{size}x' for size in shape)}{DTYPES[dtype].stablehlo}>"


def _decode(llm: Any, device: Device, requests: int, ahead: bool, step: float) -> Host:
    """Decodes with the engine's core, as its process does; the front end, which has a process of its own, is not measured."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=WARM + STEPS + 10, temperature=0, ignore_eos=True, detokenize=False)
    for index in range(requests):
        llm.llm_engine.add_request(f"{requests}-{step:g}-{index}", {"prompt_token_ids": list(range(5, 37))}, params)
    core = llm.llm_engine.engine_core.engine_core
    worker = llm.llm_engine.model_executor.driver_worker
    spent = _Spent(worker.worker, device)
    device.spans.clear()
    device.seconds = step / 1e3
    while len(device.spans) < WARM:
        core.step_fn()
    host, ours = [], []
    while len(device.spans) < WARM + STEPS:
        begun, waited, before = perf_counter(), device.waited, spent.seconds
        core.step_fn()
        host.append(perf_counter() - begun - (device.waited - waited))
        ours.append(spent.seconds - before)
    spent.stop()
    gap = statistics.median(device.gaps(WARM))
    while core.scheduler.has_requests() or core.batch_queue:
        core.step_fn()
    return Host(requests, ahead, step, *(1e6 * one for one in (gap, statistics.median(host), statistics.median(ours))))


class _Spent:
    """Seconds that the worker's methods of a step work, less what they sleep."""

    METHODS = ("execute_model", "sample_tokens")

    def __init__(self, worker: Any, device: Device) -> None:
        self._worker, self._device = worker, device
        self.seconds = 0.0
        for name in self.METHODS:
            setattr(worker, name, self._timed(getattr(worker, name)))

    def stop(self) -> None:
        """Restores the methods."""
        for name in self.METHODS:
            delattr(self._worker, name)

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            begun, waited = perf_counter(), self._device.waited
            result = method(*args, **kwargs)
            self.seconds += perf_counter() - begun - (self._device.waited - waited)
            if hasattr(result, "get_output"):
                result.get_output = self._timed(result.get_output)
            return result

        return call
