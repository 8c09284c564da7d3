"""Pairs of op and dtype through one or several ways of lowering, each in a process of its own; outcomes as lines of JSON.

    outcomes = run(todo, {"fxhlo": Way(command, code)}, jobs=2, out=folder)   # in the parent; goes on where it stopped
    serve(attempt)                                                            # in a worker: pairs in, outcomes out

Comes in: pairs, and for each way the command of its worker. Goes out: `<way>.jsonl` in a folder, a line a pair. Guaranteed: a pair
goes through all ways, one after the other, before its lane takes the next one, so that a run that is stopped has compared what it
did; every way has the same LIMIT, counted from when its worker is ready; a process that dies or is late is an outcome like any
other; an outcome that other code made (`Way.code`) is not taken for one of this code.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STATUSES = {"passed": "#3a8f5c", "refused": "#c9c9c9", "wrong": "#d97706", "crash": "#b91c1c"}
"""Status -> its color in the plots, from the best to the worst."""
EMPTY = "empty"
"""The status of a pair of which eager torch runs no sample: there is nothing to compare, and it is not counted."""
LIMIT = 120.0
"""Seconds that a way has for all samples of one pair."""
START = 300.0
"""Seconds that a worker has to import what it needs and to lower its first op."""
EVERY = 30.0
"""Seconds between two lines of progress."""

Pair = tuple[str, str]


@dataclass
class Outcome:
    """What became of one pair. code: of which code this is the outcome, see `Way`."""

    op: str
    dtype: str
    status: str
    samples: int = 0
    reason: str = ""
    seconds: float = 0.0
    code: str = ""

    @property
    def pair(self) -> Pair:
        return self.op, self.dtype


_NOTHING = Outcome("", "", EMPTY)


@dataclass(frozen=True)
class Way:
    """How ops are lowered: the worker's command without the interpreter, and what tells its code from other code."""

    command: tuple[str, ...]
    code: str
    environment: Mapping[str, str] | None = None


# -- in the parent -------------------------------------------------------------------------------------------------


def run(
    pairs: Iterable[Pair],
    ways: Mapping[str, Way],
    jobs: int,
    out: Path,
    again: Callable[[Outcome], bool] = lambda outcome: False,
) -> dict[str, dict[Pair, Outcome]]:
    """Way -> pair -> outcome of the pairs that can be compared, after what is not known yet (or is wanted again) has been run."""
    pairs = list(pairs)
    out.mkdir(parents=True, exist_ok=True)
    known = {name: load(out / f"{name}.jsonl", way.code) for name, way in ways.items()}
    todo = {
        pair: missing
        for pair in pairs
        if (missing := [name for name, found in known.items() if pair not in found or again(found[pair])])
    }
    files = {name: (out / f"{name}.jsonl").open("a") for name in ways}
    progress = Progress(len(pairs), len(todo), list(ways))
    try:
        for name, outcome in _answers(todo, ways, jobs):
            outcome.code = ways[name].code
            print(json.dumps(asdict(outcome)), file=files[name], flush=True)
            known[name][outcome.pair] = outcome
            progress.add(name, outcome)
    finally:
        for file in files.values():
            file.close()
    return shared(pairs, known)


def shared(pairs: Iterable[Pair], known: Mapping[str, Mapping[Pair, Outcome]]) -> dict[str, dict[Pair, Outcome]]:
    """Of these pairs those that every way has been through, and of which each could run a sample in eager torch."""
    both = [pair for pair in pairs if all(found.get(pair, _NOTHING).status != EMPTY for found in known.values())]
    return {name: {pair: found[pair] for pair in both} for name, found in known.items()}


def load(path: Path, code: str | None = None) -> dict[Pair, Outcome]:
    """The last outcome of every pair, of this code where one is given."""
    if not path.exists():
        return {}
    outcomes = (Outcome(**json.loads(line)) for line in path.read_text().splitlines() if line.strip())
    return {outcome.pair: outcome for outcome in outcomes if code in (None, outcome.code)}


def _answers(todo: Mapping[Pair, list[str]], ways: Mapping[str, Way], jobs: int) -> Iterable[tuple[str, Outcome]]:
    """(way, outcome) as they come, from `jobs` lanes; a lane has a worker for each way and asks them in turn."""
    waiting, stopped = deque(todo.items()), threading.Event()
    answers: SimpleQueue[tuple[str, Outcome] | BaseException | None] = SimpleQueue()
    lanes = [{name: Worker(way) for name, way in ways.items()} for _ in range(min(jobs, len(todo)))]

    def work(lane: Mapping[str, Worker]) -> None:
        try:
            while not stopped.is_set():
                try:
                    pair, names = waiting.popleft()
                except IndexError:
                    break
                for name in names:
                    if not stopped.is_set():
                        answers.put((name, lane[name].ask(pair)))
            answers.put(None)
        except BaseException as problem:
            answers.put(problem)

    for lane in lanes:
        threading.Thread(target=work, args=(lane,), daemon=True).start()
    try:
        ended = 0
        while ended < len(lanes):
            answer = answers.get()
            if isinstance(answer, BaseException):
                raise answer
            if answer is None:
                ended += 1
            else:
                yield answer
    finally:
        stopped.set()
        for lane in lanes:
            for worker in lane.values():
                worker.close()


class Worker:
    """A process that answers one pair at a time; replaced when it dies or is late."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self.process: subprocess.Popen[str] | None = None

    def ask(self, pair: Pair) -> Outcome:
        if self.process is None or self.process.poll() is not None:
            self.process = self._start()
            ready = self._line(START)
            if not isinstance(ready, str):
                return Outcome(*pair, "crash", 0, f"the worker did not start: {_died(ready, START)}")
        assert self.process.stdin is not None
        started = time.monotonic()
        self.process.stdin.write(" ".join(pair) + "\n")
        self.process.stdin.flush()
        line = self._line(LIMIT)
        if isinstance(line, str):
            return Outcome(**json.loads(line))
        return Outcome(*pair, "crash", 0, _died(line, LIMIT), round(time.monotonic() - started, 2))

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", *self.way.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=self.way.environment,
        )

    def _line(self, limit: float) -> str | float:
        """The next line; else the exit status of a process that died, or infinity for one that was late."""
        process = self.process
        assert process is not None and process.stdout is not None
        for _ in range(round(limit)):  # second by second: those in which everything is stopped do not count
            ready, _, _ = select.select([process.stdout], [], [], 1.0)
            if ready:
                break
        line = process.stdout.readline() if ready else ""
        if line:
            return line
        if ready:
            return process.wait()
        self.close()
        return float("inf")

    def close(self) -> None:
        """At once: a worker may be in a call that does not end."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def _died(status: float, limit: float) -> str:
    return f"no answer within {limit:.0f} s" if status == float("inf") else f"the process died with {status}"


@dataclass
class Progress:
    """Lines on stdout: how far the run is, how long it will take, and what the first way did not pass."""

    pairs: int
    todo: int
    ways: list[str]
    started: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, way: str, outcome: Outcome) -> None:
        self.counts[way, outcome.status] += 1
        if way == self.ways[0] and outcome.status not in ("passed", EMPTY):
            text = outcome.reason.splitlines()[0] if outcome.reason else ""
            print(f"  {outcome.status} {outcome.op} {outcome.dtype}: {text}", flush=True)
        done = min(sum(self.counts[name, status] for status in (*STATUSES, EMPTY)) for name in self.ways)
        now = time.monotonic()
        if done and (now - self.said > EVERY or (done == self.todo and way == self.ways[-1])):
            self.said = now
            passed = ", ".join(f"{name} {self.counts[name, 'passed']}" for name in self.ways)
            left = (now - self.started) / done * (self.todo - done) / 60
            print(
                f"{self.pairs - self.todo + done} of {self.pairs} pairs; of {done} now passed {passed}; {left:.0f} min left",
                flush=True,
            )


# -- in a worker ---------------------------------------------------------------------------------------------------


def serve(answer: Callable[[str, str], Outcome], first: Pair) -> None:
    """Says when it is ready, which is after `first` has been answered, then answers "op dtype" lines with JSON ones."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    answer(*first)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        name, dtype = line.split()
        try:
            outcome = answer(name, dtype)
        except Exception as problem:
            outcome = Outcome(name, dtype, "crash", 0, short(f"{type(problem).__name__}: {problem}"))
        print(json.dumps(asdict(outcome)), file=answers, flush=True)


def short(text: str, limit: int = 600) -> str:
    return text if len(text) <= limit else text[:limit] + " ..."


# -- reports -------------------------------------------------------------------------------------------------------


def bars(counts: Mapping[str, Mapping[str, int]], label: str, path: Path) -> None:
    """A picture: a bar per row of `counts` (row -> status -> number), of a segment per status."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = list(counts)
    figure, axes = pyplot.subplots(figsize=(8, 1.4 + 0.35 * len(rows)), layout="constrained")
    left = [0] * len(rows)
    for status, color in STATUSES.items():
        widths = [counts[row].get(status, 0) for row in rows]
        axes.barh(rows, widths, left=left, label=status, color=color)
        left = [one + other for one, other in zip(left, widths, strict=True)]
    axes.set_xlabel(label)
    axes.invert_yaxis()
    figure.legend(ncols=len(STATUSES), loc="outside upper center", frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def table(head: str, counts: Mapping[Any, Mapping[str, int]]) -> list[str]:
    """Lines of markdown: a row per row of `counts`, a column per status, and how many there are in all."""
    lines = [f"| {head} | pairs | " + " | ".join(STATUSES) + " |", "|---|---:|" + "---:|" * len(STATUSES)]
    for row, found in counts.items():
        numbers = [found.get(status, 0) for status in STATUSES]
        lines.append(f"| {row} | {sum(numbers)} | " + " | ".join(map(str, numbers)) + " |")
    return lines
