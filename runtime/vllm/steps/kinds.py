"""The closed set of programs that the scheduler can ask for: which sizes there are, and what one of them answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SMALLEST = 4
"""Rows of the smallest program; the native products take up to six rows in one go over a weight."""


@dataclass(frozen=True, order=True)
class Bucket:
    """Sizes of one program: rows of tokens, and requests."""

    tokens: int
    requests: int

    def __str__(self) -> str:
        return f"tokens={self.tokens},requests={self.requests}"


@dataclass(frozen=True)
class StepResult:
    """tokens int32 [R]; logprobs (ids int32 [R, n + 1], values float32 [R, n + 1], ranks int32 [R]) where asked for."""

    tokens: np.ndarray
    logprobs: tuple[np.ndarray, np.ndarray, np.ndarray] | None


def buckets(max_tokens: int, max_requests: int) -> tuple[Bucket, ...]:
    """The closed set: decode steps with as many rows as requests, and larger steps of prompts among all requests.

    Sizes double, so less than half of a step is padding; a request that is not there costs a step next to nothing but its
    row of logits.
    """
    decode = {Bucket(size, size) for size in _doubled(SMALLEST, max_requests)}
    mixed = {Bucket(size, max_requests) for size in _doubled(SMALLEST, max_tokens) if size > max_requests}
    return tuple(sorted(decode | mixed))


def _doubled(smallest: int, largest: int) -> list[int]:
    """smallest, twice as many, ... up to and with `largest`."""
    sizes = []
    size = smallest
    while size < largest:
        sizes.append(size)
        size *= 2
    return [*sizes, largest]
