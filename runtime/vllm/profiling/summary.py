"""Reads traces of profiles and sums up their steps by program.

Comes in: a folder of traces, or one. Goes out: a `Program` for each program, with a median and the mean of each part. Guaranteed: a step's parts on the host
add up to the step; a trace whose process was killed counts up to its last whole step.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any

from .trace import PARTS, ProfileError

ENDING = ".trace.json"
READS = ("wait", "read back")
"""Parts that may come after their step."""


@dataclass(frozen=True)
class Step:
    """One step; times in seconds. parts: PARTS and "other", which add up to `host`. gap: since the step before it, None where no request was left.

    Results that are read while the next step runs (asynchronous scheduling) count to the step that they are of, not to the gap in which they are read.
    """

    program: str
    tokens: int
    requests: int
    host: float
    gap: float | None
    device: float
    parts: Mapping[str, float]


@dataclass(frozen=True)
class Program:
    """The steps of one program. padding: the part of its rows of tokens that no step used. times: means in seconds. median, late: of the time
    between steps, `late` for the 99th of 100."""

    name: str
    steps: int
    tokens: float
    padding: float
    whole: float
    median: float
    late: float
    device: float
    parts: Mapping[str, float]


def traces(place: Path) -> list[Path]:
    """The traces of a folder, or the one that is named. Raises ProfileError where there are none."""
    found = [place] if place.is_file() else sorted(place.glob(f"*{ENDING}"))
    if not found:
        raise ProfileError(
            "there is no profile here" if place.is_dir() else "there is no such folder", where=place,
            next_step="name the folder of FXHLO_PROFILE or of --profiler-config, after the engine has served",
        )  # fmt: skip
    return found


def steps_of(trace: Path) -> list[Step]:
    """The whole steps of a trace, in order."""
    spans: dict[int, list[dict[str, Any]]] = {}
    for event in _events(trace):
        if event.get("ph") == "X" and "step" in event.get("args", {}):
            spans.setdefault(event["args"]["step"], []).append(event)
    reads = [event for events in spans.values() for event in events if event["name"] in READS]
    reads.sort(key=lambda event: event["ts"])
    begins = [event["ts"] for event in reads]
    found = []
    for _, events in sorted(spans.items()):
        for gap in (event for event in events if event["name"] == "gap"):
            inside = reads[bisect_left(begins, gap["ts"]) : bisect_right(begins, gap["ts"] + gap["dur"])]
            gap["dur"] -= sum(event["dur"] for event in inside if event["tid"] == gap["tid"])
        if (step := _step(events)) is not None:
            found.append(step)
    return found


def _events(trace: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = trace.read_text().splitlines()
    except OSError as problem:
        raise ProfileError(
            f"the profile cannot be read: {problem.strerror}",
            where=trace,
            next_step="name a file that this user may read",
        ) from problem
    if not lines or lines[0] != "[":
        raise ProfileError("this is no profile of fxhlo", where=trace, next_step=f"name a file *{ENDING}")
    for line in lines[1:]:
        try:
            event = json.loads(line.removesuffix(","))
        except ValueError:  # the last line of a killed process, or the end
            continue
        if isinstance(event, dict):
            yield event


def _step(events: Sequence[dict[str, Any]]) -> Step | None:
    whole = next((event for event in events if event["name"] == "step"), None)
    if whole is None or "program" not in whole["args"]:
        return None
    parts = dict.fromkeys(PARTS, 0.0)
    gap, device, within, later = None, 0.0, 0.0, 0.0
    for event in events:
        seconds = event["dur"] / 1e6
        if event["name"] in parts:
            parts[event["name"]] += seconds
            inside = _in(event, whole)
            within += seconds if inside else 0.0
            later += 0.0 if inside else seconds
        gap = seconds if event["name"] == "gap" else gap
        device += seconds if event["name"] == "device" else 0.0
    host = whole["dur"] / 1e6
    facts = whole["args"]
    return Step(
        facts["program"], facts["tokens"], facts["requests"], host + later, gap, device, {**parts, "other": host - within}
    )  # fmt: skip


def _in(event: Mapping[str, Any], whole: Mapping[str, Any]) -> bool:
    """Whether a span is a part of the step on the thread that makes steps; vLLM may read results on another, while the next step is made."""
    begin, end = event["ts"], event["ts"] + event["dur"]
    return event["tid"] == whole["tid"] and whole["ts"] <= begin and end <= whole["ts"] + whole["dur"] + 0.002


def programs(steps: Sequence[Step]) -> list[Program]:
    """A row for each program, those that took longest first."""
    by_name: dict[str, list[Step]] = {}
    for step in steps:
        by_name.setdefault(step.program, []).append(step)
    rows = [_program(name, some) for name, some in by_name.items()]
    return sorted(rows, key=lambda row: -row.steps * row.whole)


def _program(name: str, steps: Sequence[Step]) -> Program:
    sizes = dict(part.split("=") for part in name.split(","))
    gaps = [step.gap for step in steps if step.gap is not None]
    wholes = [step.host + (step.gap or 0.0) for step in steps]
    means = {part: fmean(step.parts[part] for step in steps) for part in steps[0].parts}
    tokens = fmean(step.tokens for step in steps)
    return Program(
        name=name,
        steps=len(steps),
        tokens=tokens,
        padding=1 - tokens / int(sizes["tokens"]),
        whole=fmean(wholes),
        median=median(wholes),
        late=quantiles(wholes, n=100, method="inclusive")[-1] if len(wholes) > 1 else wholes[0],
        device=fmean(step.device for step in steps),
        parts={"gap": sum(gaps) / len(steps), **means},
    )
