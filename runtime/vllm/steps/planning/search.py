"""The search for the programs that make an engine's steps cost least.

A plan is one chain of programs, each of which holds the one before, or two: one for steps of few requests, one for the others. A step runs in the first
program of its chain that holds it. With V(b) the sum over all steps that b holds of share / cost(step), a chain makes

    sum over its programs of cost(b) * (V(b) - V(the program before))

times as long as programs of every step's own size would. So the best chain of k programs that ends in b is the best one of k - 1
programs that ends in some b' within b, and one more: an exact dynamic program over the candidates, with no more than k * n * n
additions. Two chains share nothing, so that each is found by itself, for each of a few numbers of requests to part them at.

A chain can be what sizes that double are (all requests' programs for decoding, then more tokens), so the plan is never worse than those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..kinds import SMALLEST, Bucket, Limits, doubled
from .costs import Costs
from .load import Load

FINE = 128
"""Tokens from which on the sizes of a step that pools have one between two that double: it is all computation, and so is its padding."""
PARTS = 16
"""Steps of the linear candidates: a sixteenth of the limit, above a quarter of it."""


@dataclass(frozen=True)
class Found:
    """The best programs of a number, and how many times as long the load takes in them as in programs of each step's own size."""

    stretch: float
    sizes: tuple[tuple[int, int], ...]


def best(limits: Limits, costs: Costs, load: Load, most: int) -> list[Found]:
    """The best plan of 1, 2, ... `most` programs; fewer where no plan has so many."""
    whole = _Candidates.of(limits, costs, load, 1, limits.requests)
    found = _chains(whole, most)
    for parted in _parts(limits):
        few = _chains(_Candidates.of(limits, costs, load, 1, parted), most - 1)
        others = _chains(_Candidates.of(limits, costs, load, parted + 1, limits.requests), most - 1)
        for first, one in few.items():
            for second, other in others.items():
                both = Found(one.stretch + other.stretch, one.sizes + other.sizes)
                known = found.get(first + second)
                if first + second <= most and (known is None or both.stretch < known.stretch):
                    found[first + second] = both
    return [found[count] for count in sorted(found)]


def stretch(buckets: Sequence[Bucket], costs: Costs, load: Load) -> float:
    """How many times as long the load takes in these programs, in the order in which they are selected, as in programs of each step's own size."""
    steps = np.array(list(load))
    cost = costs.of(steps[:, 0], steps[:, 1])
    taken = np.full(len(steps), np.nan)
    for bucket in reversed(buckets):
        fits = (bucket["tokens"] >= steps[:, 0]) & (bucket["requests"] >= steps[:, 1])
        taken[fits] = costs.of(bucket["tokens"], bucket["requests"])
    return float(np.sum(np.array(list(load.values())) * taken / cost))


def ordered(sizes: Sequence[tuple[int, int]], costs: Costs) -> tuple[Bucket, ...]:
    """Buckets of (tokens, requests) in the order of their costs, the smaller first where these are equal."""
    unique = sorted(set(sizes), key=lambda one: (float(costs.of(*one)), one))
    return tuple(Bucket.of(tokens=tokens, requests=requests) for tokens, requests in unique)


def doubled_sizes(limits: Limits) -> list[tuple[int, int]]:
    """The sizes that double, with which plans are compared: as many tokens as requests, then all requests and more tokens."""
    most, tokens = limits.requests, limits.largest()
    if limits.pooling:
        sizes = doubled(SMALLEST, tokens)
        between = [size + size // 2 for size in sizes if size >= FINE and size + size // 2 < tokens]
        return [(size, most) for size in sorted([*sizes, *between])]
    decode = [(size, size) for size in doubled(SMALLEST, most)]
    return decode + [(size, most) for size in doubled(SMALLEST, tokens) if size > decode[-1][1]]


@dataclass(frozen=True)
class _Candidates:
    """Programs to choose from, [n], in an order in which one comes after all that it holds; the last holds all steps.

    cost: of each. held: V of each. within [n, n]: whether the second holds the first.
    """

    sizes: np.ndarray
    cost: np.ndarray
    held: np.ndarray
    within: np.ndarray

    @classmethod
    def of(cls, limits: Limits, costs: Costs, load: Load, least: int, most: int) -> _Candidates:
        """The candidates for steps of `least` to `most` requests."""
        top = limits.largest(least, most)
        tokens, requests = _token_sizes(top, limits), _request_sizes(most, limits)
        requests = requests[requests >= least]
        steps, shares = np.array(list(load)), np.array(list(load.values()))
        mine = (steps[:, 1] >= least) & (steps[:, 1] <= most)
        steps, shares = steps[mine], shares[mine]
        grid = np.zeros((len(tokens), len(requests)))
        places = np.searchsorted(tokens, steps[:, 0]), np.searchsorted(requests, steps[:, 1])
        np.add.at(grid, places, shares / costs.of(steps[:, 0], steps[:, 1]))
        held = grid.cumsum(0).cumsum(1)
        pairs = [(row, column) for row in range(len(tokens)) for column in range(len(requests))]
        useful = [
            (row, column) for row, column in pairs
            if limits.pooling or tokens[row] >= requests[column] or (row, column) == (len(tokens) - 1, len(requests) - 1)
        ]  # fmt: skip
        rows, columns = (np.array(axis) for axis in zip(*useful, strict=True))
        sizes = np.stack([tokens[rows], requests[columns]], 1)
        within = (sizes[:, None] <= sizes[None]).all(2) & ~np.eye(len(sizes), dtype=bool)
        return cls(sizes, costs.of(sizes[:, 0], sizes[:, 1]), held[rows, columns], within)


def _chains(candidates: _Candidates, most: int) -> dict[int, Found]:
    """The best chain of each number of programs that ends in the last candidate."""
    cost, held = candidates.cost, candidates.held
    added = np.where(candidates.within, cost[None] * (held[None] - held[:, None]), np.inf)
    value, before = cost * held, []
    found = {}
    for count in range(1, most + 1):
        if count > 1:
            through = value[:, None] + added
            before.append(through.argmin(0))
            value = through.min(0)
        if not np.isfinite(value[-1]):
            break
        at, chain = len(cost) - 1, []
        for step in reversed(before):
            chain.append(at)
            at = int(step[at])
        chain.append(at)
        sizes = tuple((int(tokens), int(requests)) for tokens, requests in candidates.sizes[chain[::-1]])
        found[count] = Found(float(value[-1]), sizes)
    return found


def _token_sizes(top: int, limits: Limits) -> np.ndarray:
    """Sizes that double with one between, linear ones above a quarter of the limit, and those that the limits are made of."""
    sizes = {size for size in doubled(SMALLEST, top) for size in (size, size + size // 2)}
    step = _aligned(max(top // PARTS, 1))
    sizes |= {_aligned(top // 4) + number * step for number in range(PARTS)}
    sizes |= set(doubled(SMALLEST, limits.requests)) | {top}
    return np.array(sorted(size for size in sizes if size <= top))


def _request_sizes(most: int, limits: Limits) -> np.ndarray:
    if limits.pooling:  # a request takes a row of its bounds alone, so each program has all
        return np.array([most])
    sizes = {size for size in doubled(SMALLEST, most) for size in (size, size + size // 2)} | {most}
    return np.array(sorted(size for size in sizes if size <= most))


def _aligned(size: int) -> int:
    """A multiple of the rows that kernels take at once, not below `size`."""
    unit = 16 if size >= 64 else 8 if size >= 16 else SMALLEST
    return -(-size // unit) * unit


def _parts(limits: Limits) -> list[int]:
    """Numbers of requests to part two chains at."""
    return [] if limits.pooling else [size for size in doubled(SMALLEST, limits.requests)[:-1] if size <= 32]
