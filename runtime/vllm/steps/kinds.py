"""Buckets: the sizes of an engine's programs, and which one a step runs in.

A step of vLLM's scheduler has `tokens` rows of `requests` requests. It runs in the first program that holds it; programs are in
the order of what they cost, so that this is the cheapest. Which programs there are is planned (planning/), and a proof
at start-up (planning/proof.py) shows that every step has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...core.errors import FxhloError

SMALLEST = 4
"""Rows of the smallest program; the native kernels of linear layers take up to six rows in one pass over a weight."""


@dataclass(frozen=True)
class Limits:
    """The steps that vLLM's scheduler can ask for: `requests` of them from 1 on, each with at least one token.

    tokens: maximum of a step. longest: tokens that one request can have in a step, None for no limit but the step's.
    threshold: of vLLM's long_prefill_token_threshold, the most that a request gets which is not alone; 0 for none. shared: tokens that
    requests share evenly where the threshold adapts to their number, else 0. pooling: steps return hidden states.

    They may be more than a model or a moment allows, never fewer: prefixes found in the cache, too few blocks, and masks make steps smaller.
    """

    tokens: int
    requests: int
    longest: int | None = None
    threshold: int = 0
    shared: int = 0
    pooling: bool = False

    def most(self, requests: int) -> int:
        """The most tokens that a step of this many requests can have."""
        each = self.tokens if self.longest is None else self.longest
        if requests > 1 and self.threshold:
            each = min(each, max(self.threshold, self.shared // requests))
        return min(self.tokens, requests * each)

    def largest(self, least: int = 1, most: int | None = None) -> int:
        """The most tokens of a step of at least `least` requests and at most `most`."""
        return max(self.most(requests) for requests in range(least, (most or self.requests) + 1))


@dataclass(frozen=True, order=True)
class Bucket:
    """The sizes of one program, by symbol; buckets are ordered by their sizes."""

    sizes: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, **sizes: int) -> Bucket:
        return cls(tuple(sizes.items()))

    def __getitem__(self, symbol: str) -> int:
        return dict(self.sizes)[symbol]

    def holds(self, step: Bucket) -> bool:
        """Whether a step of these sizes fits into the program."""
        return all(
            name == asked and size >= least for (name, size), (asked, least) in zip(self.sizes, step.sizes, strict=True)
        )

    def __str__(self) -> str:
        return ",".join(f"{name}={size}" for name, size in self.sizes)

    @classmethod
    def parse(cls, text: str) -> Bucket:
        """The bucket of `str`: "tokens=8,requests=4"."""
        parts = (part.partition("=") for part in text.split(","))
        return cls(tuple((name, int(size)) for name, _, size in parts))


def select(buckets: Sequence[Bucket], step: Bucket) -> Bucket:
    """Returns the first program that holds the step. buckets: in the order of their costs."""
    for bucket in buckets:
        if bucket.holds(step):
            return bucket
    raise FxhloError(
        f"no program for a step of {step}; the largest is {buckets[-1]}",
        next_step="raise max_num_batched_tokens or max_num_seqs, and start again",
    )


def doubled(smallest: int, largest: int) -> list[int]:
    """smallest, 2 * smallest, ... up to and including `largest`."""
    sizes = []
    size = smallest
    while size < largest:
        sizes.append(size)
        size *= 2
    return [*sizes, largest]
