"""Load: which steps an engine spends its time in, as shares of that time.

Comes in: the scheduler's limits, and the lengths of requests where they are known. Goes out: a share of the time for each (tokens, requests);
they sum to 1. Guaranteed: no step is outside of the limits; the same arguments give the same load.

Without lengths no scale is likelier than another: half of the time goes to steps that decode, with the number of requests spread evenly
over its logarithm, and half to steps with a prompt, whose tokens are spread the same way. Clients like round numbers, and long prompts
are cut at the limit: half of the decoding has a power of two of requests, and a quarter of the prompts' steps are full.

With lengths the scheduler's rule is played through, at each power of two of requests that are in work at once; each has the
same share of the time.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from ..kinds import Limits, doubled
from .costs import Costs

Load = Mapping[tuple[int, int], float]
"""The share of the time by the (tokens, requests) of a step."""
Length = tuple[int, int, float]
"""Tokens of a prompt and of its answer, and how often this pair was met."""

PARTS = 48
"""Numbers of requests, and of tokens, that stand for an even spread over the logarithm."""
STEPS = 6000
"""Parts of requests in steps that are played through for each number of requests in work."""


def even_load(limits: Limits) -> Load:
    """The load where nothing is known of the requests."""
    shares: dict[tuple[int, int], float] = defaultdict(float)
    for requests, share in _numbers_of_requests(limits.requests).items():
        most = limits.most(requests)
        prompts = 1.0 if limits.pooling else 0.5 if most > requests else 0.0
        shares[requests, requests] += share * (1 - prompts)
        if prompts:
            first = requests if limits.pooling or most == requests else requests + 1
            sizes = _spread(first, most)
            for tokens in sizes:
                shares[tokens, requests] += share * prompts * 0.75 / len(sizes)
            shares[most, requests] += share * prompts * 0.25
    return {step: share for step, share in shares.items() if share}


def load_of(lengths: Sequence[Length], limits: Limits, costs: Costs, *, chunked: bool = True) -> Load:
    """The load of requests of these lengths. chunked: whether a prompt may be cut where a step is full."""
    shares: dict[tuple[int, int], float] = defaultdict(float)
    levels = doubled(1, limits.requests)
    for in_work in levels:
        counts = _played(lengths, limits, in_work, chunked=chunked)
        times = {step: count * float(costs.of(*step)) for step, count in counts.items()}
        whole = sum(times.values())
        for step, time in times.items():
            shares[step] += time / whole / len(levels)
    return dict(shares)


def _numbers_of_requests(most: int) -> dict[int, float]:
    """The share of the time for each number of requests at once."""
    spread, powers = _spread(1, most), doubled(1, most)
    shares: dict[int, float] = defaultdict(float)
    for numbers in (spread, powers):
        for number in numbers:
            shares[number] += 0.5 / len(numbers)
    return dict(shares)


def _spread(first: int, last: int) -> list[int]:
    """Up to PARTS numbers, evenly over the logarithm; both ends are among them."""
    return sorted({round(number) for number in np.geomspace(first, last, PARTS)})


def _played(lengths: Sequence[Length], limits: Limits, in_work: int, *, chunked: bool) -> Counter[tuple[int, int]]:
    """How often each step comes where `in_work` requests are there at any time."""
    play, counts, worked = _Play(lengths, limits, in_work, chunked=chunked), Counter[tuple[int, int]](), 0
    while worked < STEPS:
        (tokens, requests), times = play.steps()
        counts[tokens, requests] += times
        worked += requests * min(times, 8)
    return counts


class _Play:
    """vLLM's rule without its blocks: requests that run get their tokens first, in order, then new ones while tokens are left; a request that ends
    is followed by another. A request is a list: tokens left of its prompt, and of its answer."""

    def __init__(self, lengths: Sequence[Length], limits: Limits, in_work: int, *, chunked: bool) -> None:
        self._drawn, self._lengths, self._limits, self._chunked = random.Random(0), lengths, limits, chunked
        self._weights = [weight for _, _, weight in lengths]
        held_back = limits.threshold and in_work > 1
        self._threshold = max(limits.threshold, limits.shared // in_work) if held_back else limits.tokens
        self._waiting = [self._new() for _ in range(in_work)]
        self._running: list[list[int]] = []
        for request in self._waiting:  # they do not begin together, so not all of them end together
            request[1] = request[1] and self._drawn.randint(1, request[1])

    def steps(self) -> tuple[tuple[int, int], int]:
        """The next step, and how often it comes in a row."""
        if self._waiting or any(prompt for prompt, _ in self._running):
            step, times = self._step(), 1
        else:  # all of them decode until the first one ends
            times = min(answer for _, answer in self._running)
            for request in self._running:
                request[1] -= times
            step = len(self._running), len(self._running)
        before = len(self._running)
        self._running = [request for request in self._running if any(request)]
        self._waiting += [self._new() for _ in range(before - len(self._running))]
        return step, times

    def _step(self) -> tuple[int, int]:
        left, requests = self._limits.tokens, 0
        for request in self._running:
            given = min(request[0] or 1, self._threshold, left)
            _advance(request, given)
            left, requests = left - given, requests + bool(given)
        while self._waiting and left and len(self._running) < self._limits.requests:
            given = min(self._waiting[0][0], self._threshold)
            if given > left and not self._chunked and requests:
                break
            given = min(given, left)
            self._running.append(self._waiting.pop(0))
            _advance(self._running[-1], given)
            left, requests = left - given, requests + 1
        return self._limits.tokens - left, requests

    def _new(self) -> list[int]:
        longest = self._limits.longest or self._limits.tokens
        ((prompt, answer, _),) = self._drawn.choices(self._lengths, self._weights)
        prompt = max(1, min(prompt, longest))
        return [prompt, 0 if self._limits.pooling else max(1, min(answer, longest + 1 - prompt))]


def _advance(request: list[int], given: int) -> None:
    """A request after a step with `given` tokens of it; the step that ends its prompt gives the first token of its answer."""
    if not given:
        return
    if not request[0]:
        request[1] -= given
        return
    request[0] -= given
    if not request[0] and request[1]:
        request[1] -= 1
