"""The closed set of programs: kinds of steps, the sizes of their programs, and the check that every step has one.

A step runs in the smallest program that holds it. A new kind (an encoder's step, a pooling
one, the verification of drafts) is another row of `KINDS`, with symbols of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ...core.errors import FxhloError

SMALLEST = 4
"""Rows of the smallest program; the native kernels of linear layers take up to six rows in one pass over a weight."""


@dataclass(frozen=True)
class Limits:
    """Maximum size of a step of vLLM's scheduler: rows of tokens, and requests."""

    tokens: int
    requests: int


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


@dataclass(frozen=True)
class StepKind:
    """A kind of step. buckets: sizes of its programs. largest: sizes of the scheduler's largest step."""

    name: str
    buckets: Callable[[Limits], Iterable[Bucket]]
    largest: Callable[[Limits], Bucket]


def _decode(limits: Limits) -> Iterable[Bucket]:
    return (Bucket.of(tokens=size, requests=size) for size in _doubled(SMALLEST, limits.requests))


def _mixed(limits: Limits) -> Iterable[Bucket]:
    sizes = _doubled(SMALLEST, limits.tokens)
    return (Bucket.of(tokens=size, requests=limits.requests) for size in sizes if size > limits.requests)


KINDS = (
    StepKind("decode", _decode, lambda limits: Bucket.of(tokens=limits.requests, requests=limits.requests)),
    StepKind("mixed", _mixed, lambda limits: Bucket.of(tokens=limits.tokens, requests=limits.requests)),
)
"""decode: one token of each request. mixed: prompts, in whole or in part, among requests that decode.

Sizes double, so that less than half of a step is padding. A mixed step has room for all requests: an unused one costs
little more than its row of logits.
"""


FINE = 128
"""Tokens from which on there is a program between two sizes that double: a step that pools is all computation, and so is its padding."""


def _pool(limits: Limits) -> Iterable[Bucket]:
    sizes = _doubled(SMALLEST, limits.tokens)
    between = [size + size // 2 for size in sizes if size >= FINE and size + size // 2 < limits.tokens]
    return (Bucket.of(tokens=size, requests=limits.requests) for size in sorted([*sizes, *between]))


POOLING = (StepKind("pool", _pool, lambda limits: Bucket.of(tokens=limits.tokens, requests=limits.requests)),)
"""The kinds of a model that pools: prompts, in whole or in part. A request takes a row of its bounds alone, so each program has all."""


def closed_set(limits: Limits, kinds: Sequence[StepKind] = KINDS) -> tuple[Bucket, ...]:
    """Returns every program that the scheduler can need, the smallest first. Raises FxhloError where a step would have none.

    A bucket that holds a step holds every smaller one, so it is enough that each kind's largest step has a program.
    """
    buckets = tuple(sorted({bucket for kind in kinds for bucket in kind.buckets(limits)}))
    for kind in kinds:
        if not any(bucket.holds(kind.largest(limits)) for bucket in buckets):
            raise FxhloError(
                f"no program holds the largest {kind.name} step, {kind.largest(limits)}",
                next_step="report this as a bug of fxhlo, with the engine's arguments",
            )
    return buckets


def select(buckets: Sequence[Bucket], step: Bucket) -> Bucket:
    """Returns the smallest program that holds the step. buckets: in order."""
    for bucket in buckets:
        if bucket.holds(step):
            return bucket
    raise FxhloError(
        f"no program for a step of {step}; the largest is {buckets[-1]}",
        next_step="raise max_num_batched_tokens or max_num_seqs, and start again",
    )


def _doubled(smallest: int, largest: int) -> list[int]:
    """smallest, 2 * smallest, ... up to and including `largest`."""
    sizes = []
    size = smallest
    while size < largest:
        sizes.append(size)
        size *= 2
    return [*sizes, largest]
