"""Plan: the programs of an engine, what they were planned for, and the padding to expect.

Comes in: the scheduler's limits, costs, the lengths of requests where they are known, and a budget. Goes out: a `Plan`, which can be
kept in a file. Guaranteed: a plan that is served holds every step of the engine's limits (proof.py); a file that was made for others,
or is not a plan, is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ....core.errors import FxhloError
from ..kinds import Bucket, Limits, select
from .budget import Budget
from .costs import Costs
from .lengths import Lengths
from .load import Load, even_load, load_of
from .search import best, doubled_sizes, ordered, stretch

VERSION = 1
WORTH = 0.005
"""Part of the time that one more program must save."""


class PlanError(FxhloError):
    """A plan that cannot be read, is damaged, or was made for other limits."""


@dataclass(frozen=True)
class Plan:
    """buckets: in the order in which they are selected. stretch: how many times as long steps are expected to take in them as in programs of each
    step's own size. source: of the requests' lengths; "" where none were given."""

    limits: Limits
    buckets: tuple[Bucket, ...]
    stretch: float
    source: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "fxhlo_plan": VERSION,
            "limits": asdict(self.limits),
            "programs": [dict(bucket.sizes) for bucket in self.buckets],
            "stretch": round(self.stretch, 4),
            "lengths": self.source,
        }


def make_plan(
    limits: Limits,
    costs: Costs,
    lengths: Lengths | None = None,
    budget: Budget | None = None,
    *,
    chunked: bool = True,
) -> Plan:
    """The plan of least cost within the budget; without one, of no more programs than the sizes that double.

    The fewest programs that come within WORTH of the most that are allowed, and that are no slower than the sizes that double
    where the budget allows as many. Raises FxhloError for a budget of less than one program.
    """
    load = expected_load(limits, costs, lengths, chunked=chunked)
    usual = doubled_sizes(limits)
    most = len(usual) if budget is None else budget.programs_of(costs)
    found = best(limits, costs, load, most)
    allowed = min(one.stretch for one in found) + WORTH
    if most >= len(usual):
        allowed = min(allowed, stretch(ordered(usual, costs), costs, load))
    chosen = next(one for one in found if one.stretch <= allowed + 1e-9)
    buckets = ordered(chosen.sizes, costs)
    return Plan(limits, buckets, stretch(buckets, costs, load), "" if lengths is None else lengths.source)


def expected_load(limits: Limits, costs: Costs, lengths: Lengths | None, *, chunked: bool = True) -> Load:
    """Of the lengths, or the even one."""
    return even_load(limits) if lengths is None else load_of(lengths.pairs, limits, costs, chunked=chunked)


@dataclass(frozen=True)
class Use:
    """One program of a plan under a load: its part of the time, and how many times as long its steps take as in programs of their own size."""

    bucket: Bucket
    share: float
    stretch: float


def uses(buckets: Sequence[Bucket], costs: Costs, load: Load) -> list[Use]:
    """For each program, in order, what it is expected to be used for."""
    shares, taken = dict.fromkeys(buckets, 0.0), dict.fromkeys(buckets, 0.0)
    for (tokens, requests), share in load.items():
        bucket = select(buckets, Bucket.of(tokens=tokens, requests=requests))
        shares[bucket] += share
        cost = float(costs.of(bucket["tokens"], bucket["requests"]))
        taken[bucket] += share * cost / float(costs.of(tokens, requests))
    return [
        Use(one, shares[one], taken[one] / shares[one] if shares[one] else 1.0)
        for one in buckets
    ]  # fmt: skip


def read_plan(path: Path, limits: Limits) -> Plan:
    """Reads a plan that `lower-model plan` wrote. limits: the engine's. Raises PlanError."""
    again = f"lower-model plan MODEL with the engine's options --json > {path}"
    try:
        stored = json.loads(path.read_bytes())
    except OSError as problem:
        raise PlanError(
            f"the plan cannot be read: {problem.strerror}",
            where=path,
            next_step="name a file of `lower-model plan --json`",
        ) from problem
    except ValueError as problem:
        raise PlanError(f"the plan is not JSON: {problem}", where=path, next_step=again) from problem
    if not isinstance(stored, dict) or "fxhlo_plan" not in stored:
        raise PlanError("this JSON is not a plan", where=path, next_step=again)
    if stored["fxhlo_plan"] != VERSION:
        raise PlanError(
            f"the plan is of version {stored['fxhlo_plan']}, and this fxhlo reads {VERSION}",
            where=path,
            next_step=again,
        )
    differing = _differing(stored.get("limits"), limits)
    if differing:
        raise PlanError(
            f"the plan was made for other limits of the scheduler: {differing}",
            where=path,
            next_step=f"start with the plan's own, or make it again: {again}",
        )
    sizes, source, expected = stored.get("programs"), stored.get("lengths", ""), stored.get("stretch", 1.0)
    if not isinstance(sizes, list) or not sizes or not all(_is_bucket(one) for one in sizes):
        raise PlanError(
            'the plan\'s "programs" is not a list of {"tokens": ..., "requests": ...}, each from 1 on',
            where=path,
            next_step=again,
        )
    buckets = tuple(Bucket.of(tokens=one["tokens"], requests=one["requests"]) for one in sizes)
    for bucket in buckets:
        if bucket["requests"] > limits.requests or bucket["tokens"] > max(limits.tokens, limits.requests):
            raise PlanError(f"the plan's program {bucket} is larger than any step", where=path, next_step=again)
    if len(set(buckets)) != len(buckets):
        raise PlanError("the plan has a program twice", where=path, next_step=again)
    return Plan(limits, buckets, float(expected) if isinstance(expected, (int, float)) else 1.0, str(source))


def _differing(stored: object, limits: Limits) -> str:
    """The limits of a file that are not the engine's, in words."""
    if not isinstance(stored, Mapping):
        return "it has none"
    parts = []
    for field in fields(limits):
        engine, planned = getattr(limits, field.name), stored.get(field.name, field.default)
        if planned != engine or isinstance(planned, bool) != isinstance(engine, bool):
            parts.append(
                f"{field.name} is {engine} here and {planned if field.name in stored else 'missing'} in the plan"
            )
    return "; ".join(parts)


def _is_bucket(one: object) -> bool:
    return (
        isinstance(one, dict)
        and set(one) == {"tokens", "requests"}
        and all(isinstance(size, int) and not isinstance(size, bool) and size >= 1 for size in one.values())
    )
