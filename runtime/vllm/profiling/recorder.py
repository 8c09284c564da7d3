"""Recorder: the parts of each step of a serving process, while a profile is taken.

Comes in: a worker whose programs are ready. Goes out: spans of a trace (trace.py). Guaranteed: a process that takes no profile runs none of this: the recorder
puts itself around the functions that it measures, and takes itself away when the profile ends.

The parts, of which the host's follow each other:

    gap        since the step before: vLLM schedules, and hands results on; `idle` where no request was left
    update     the batch follows the scheduler
    inputs     arrays of the batch and of sampling
    transfer   they are put onto the device
    dispatch   the program is started
    wait       until its results are there; after the step, within the gap of a later one, where vLLM schedules asynchronously
    read back  results to the host
    other      what is left of the step (grammars' masks, the output)

    device     beside the host: from the dispatch, or from the end of the program before, until the results are there
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from functools import partial
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import numpy as np

from ..pending import PendingStep
from .trace import TraceFile

if TYPE_CHECKING:
    from ..steps.kinds import Bucket


class Recorder:
    """worker: an FxhloWorker with its runner. delay: steps before the first that is recorded. most: steps to record, 0 for all until
    `stop`. failed: told when the trace cannot be written."""

    def __init__(
        self, worker: Any, trace: TraceFile, failed: Callable[[OSError], None], *, delay: int = 0, most: int = 0
    ) -> None:
        self._trace, self._failed = trace, failed
        self._undo: list[Callable[[], None]] = []
        self._delay, self._most = delay, most
        self._number = 0
        self._begin = self._last = 0
        self._facts: dict[str, Any] = {}
        self._sent = self._dispatched = 0
        self._broken = self._stopped = False
        self._pooling = not hasattr(worker.runner, "sampling")
        self._requests = worker.runner.requests
        self._ready: queue.SimpleQueue[tuple[int, int, str, Any] | None] = queue.SimpleQueue()
        self._watcher = threading.Thread(target=self._watch, name="fxhlo device", daemon=True)
        self._watcher.start()
        self._attach(worker)

    @property
    def steps(self) -> int:
        """How many steps were recorded."""
        return max(0, min(self._number - self._delay, self._most or self._number))

    def stop(self) -> None:
        """Leaves the worker as it was, and closes the trace."""
        for undo in reversed(self._undo):
            undo()
        self._undo = []
        self._stopped = True
        self._ready.put(None)
        self._watcher.join()
        try:
            self._trace.close()
        except OSError as problem:
            self._give_up(problem)

    # -- around what is measured -----------------------------------------------------------------------------------

    def _attach(self, worker: Any) -> None:
        runner: Any = worker.runner
        self._around(worker, "execute_model", self._execute)
        self._around(worker, "sample_tokens", self._sample)
        self._around(runner.batch, "inputs", partial(self._timed, "inputs"))
        self._around(runner.pooling if self._pooling else runner.sampling, "inputs", partial(self._timed, "inputs"))
        self._around(runner.steps, "start", self._start)
        for program in runner.steps.programs.values():
            self._around(program, "execute", self._dispatch)

    def _around(self, owner: Any, name: str, measured: Callable[..., Any]) -> None:
        """Has calls of owner.name go through `measured`, which gets the original first."""
        original, own = getattr(owner, name), name in vars(owner)
        setattr(owner, name, partial(measured, original))
        self._undo.append(partial(setattr, owner, name, original) if own else partial(delattr, owner, name))

    @property
    def _records(self) -> bool:
        past = self._number - self._delay
        return not self._broken and past > 0 and (not self._most or past <= self._most)

    def _span(self, name: str, begin: int, end: int, *, device: bool = False, **facts: Any) -> None:
        try:
            self._trace.span(name, begin, end, device=device, **facts)
        except OSError as problem:
            self._give_up(problem)

    def _give_up(self, problem: OSError) -> None:
        if not self._broken:
            self._broken = True
            self._failed(problem)

    def _timed(self, name: str, original: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        begin = perf_counter_ns()
        result = original(*arguments, **options)
        if self._records:
            self._span(name, begin, perf_counter_ns(), step=self._number)
        return result

    def _execute(self, original: Callable[..., Any], output: Any) -> Any:
        begin = perf_counter_ns()
        if not output.total_num_scheduled_tokens:
            return original(output)
        self._number += 1
        self._begin, self._facts = (
            begin,
            {"tokens": output.total_num_scheduled_tokens, "requests": len(output.num_scheduled_tokens)},
        )
        idle = self._requests.keys() <= set(output.finished_req_ids)
        if self._records and self._last:
            self._span("idle" if idle else "gap", self._last, begin, step=self._number)
        if self._pooling:
            result = original(output)
            self._end()
            return result
        return self._timed("update", original, output)

    def _sample(self, original: Callable[..., Any], grammar: Any) -> Any:
        result = original(grammar)
        self._end()
        return result

    def _end(self) -> None:
        self._last = perf_counter_ns()
        if self._records:
            self._span("step", self._begin, self._last, step=self._number, **self._facts)

    def _start(self, original: Callable[..., Any], bucket: Bucket, inputs: Any) -> PendingStep:
        self._sent = perf_counter_ns()
        self._facts["program"] = str(bucket)
        pending: PendingStep = original(bucket, inputs)
        if not self._records:
            return pending
        first = next(iter(pending.results.values()))  # not a state, which the next step consumes
        self._ready.put((self._number, self._dispatched, str(bucket), first))
        return _TimedStep(pending.results, self, self._number)

    def _dispatch(self, original: Callable[..., Any], buffers: Any) -> Any:
        begin = perf_counter_ns()
        results = original(buffers)
        end = perf_counter_ns()
        if self._records:
            self._span("transfer", self._sent, begin, step=self._number)
            self._span("dispatch", begin, end, step=self._number)
        self._sent, self._dispatched = end, begin
        return results

    def _watch(self) -> None:
        """The device's spans: waits for each program in turn, in a thread of its own."""
        before = 0
        while (started := self._ready.get()) is not None:
            number, begin, program, result = started
            result.block_until_ready()
            end = perf_counter_ns()
            self._span("device", max(begin, before), end, device=True, step=number, program=program)
            before = end


class _TimedStep(PendingStep):
    """A PendingStep that records how long its results take."""

    def __init__(self, results: Any, recorder: Recorder, number: int) -> None:
        super().__init__(results)
        object.__setattr__(self, "_recorder", recorder)
        object.__setattr__(self, "_number", number)

    def tokens(self) -> np.ndarray:
        return self._read("tokens", super().tokens)

    def hidden(self) -> Any:
        return self._read("hidden", super().hidden)

    def logprobs(self) -> Any:
        return self._read("logprob_ids", super().logprobs)

    def _read(self, name: str, read: Callable[[], Any]) -> Any:
        recorder, number = self._recorder, self._number  # type: ignore[attr-defined]
        if recorder._stopped:  # vLLM reads a step after it has scheduled the next, perhaps when the profile has ended
            return read()
        begin = perf_counter_ns()
        self.results[name].block_until_ready()
        there = perf_counter_ns()
        values = read()
        recorder._span("wait", begin, there, step=number)
        recorder._span("read back", there, perf_counter_ns(), step=number)
        return values
