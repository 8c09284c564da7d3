"""The proof that every step of the scheduler has a program, made before an engine says that it is ready.

Comes in: programs in the order of selection, and the limits. Goes out: a `Proof`, the steps of each program as ranges, which together are all
steps of the limits. Guaranteed: a step without a program raises FxhloError that names it.

Steps are proven by their number of requests: with it, tokens go from as many to the most that the limits allow, and of two steps the smaller
one fits wherever the larger one does. So where a program ends is a boundary in tokens, and all steps up to it are proven at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ....core.errors import FxhloError
from ..kinds import Bucket, Limits


@dataclass(frozen=True)
class Range:
    """Steps of `requests` (first and last) and `tokens` (first and last; from as many as its requests where that is more) run in `bucket`."""

    bucket: Bucket
    requests: tuple[int, int]
    tokens: tuple[int, int]

    def __contains__(self, step: tuple[int, int]) -> bool:
        tokens, requests = step
        return (
            self.requests[0] <= requests <= self.requests[1]
            and max(self.tokens[0], requests) <= tokens <= self.tokens[1]
        )

    def __str__(self) -> str:
        return f"{_words(self.tokens, 'tokens')} of {_words(self.requests, 'requests')} run in {self.bucket}"


@dataclass(frozen=True)
class Proof:
    """ranges: no two have a step in common. steps: how many signatures they are."""

    ranges: tuple[Range, ...]
    steps: int

    def __str__(self) -> str:
        return "\n".join(map(str, self.ranges))


def prove(buckets: Sequence[Bucket], limits: Limits) -> Proof:
    """Lists the program of every step that the limits allow. Raises FxhloError for the first step that has none."""
    ranges: list[Range] = []
    grown: dict[tuple[Bucket, int, int], int] = {}
    steps = 0
    for requests in range(1, limits.requests + 1):
        first, last = requests, limits.most(requests)
        steps += last - first + 1
        for bucket, start, end in _selected(buckets, requests, first, last):
            key = bucket, 0 if start == requests else start, end  # ranges that begin at their requests grow together
            at = grown.get(key)
            if at is not None and ranges[at].requests[1] == requests - 1:
                ranges[at] = Range(bucket, (ranges[at].requests[0], requests), ranges[at].tokens)
            else:
                grown[key] = len(ranges)
                ranges.append(Range(bucket, (requests, requests), (start, end)))
    return Proof(tuple(ranges), steps)


def _selected(buckets: Sequence[Bucket], requests: int, first: int, last: int) -> list[tuple[Bucket, int, int]]:
    """The programs of the steps of `requests` with `first` to `last` tokens: each with the first and last that it gets."""
    found: list[tuple[Bucket, int, int]] = []
    start = first
    for bucket in buckets:  # a later program gets what is more than all before it hold
        if bucket["requests"] >= requests and bucket["tokens"] >= start and start <= last:
            end = min(bucket["tokens"], last)
            found.append((bucket, start, end))
            start = end + 1
    if start <= last:
        raise FxhloError(
            f"the scheduler can ask for a step of tokens={start},requests={requests}, and no program holds it",
            next_step="make the plan again with this engine's options: lower-model plan MODEL; without a plan, report this as a bug of fxhlo",
        )
    return found


def _words(ends: tuple[int, int], what: str) -> str:
    first, last = ends
    return f"{first} {what if first != 1 else what.removesuffix('s')}" if first == last else f"{first} to {last} {what}"
