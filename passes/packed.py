"""Packed inputs: which of a step's inputs lie in one array, and where in it.

Per token: int32 [n, tokens], a row for each input. Others: int32 [requests + 1, n], columns for each input, whose numbers per request
lie in the request's row; those without a row per request lie in row 0. Numbers of float32 are kept as their bits. The array's name is
the names of its inputs, in order, so that a program's signature says how to pack.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from .step_inputs import StepInput

SEPARATOR = "+"


@dataclass(frozen=True)
class Packed:
    """One packed array. inputs: in order. per_token: whether each is a row, or columns."""

    inputs: tuple[StepInput, ...]
    per_token: bool

    @property
    def name(self) -> str:
        return SEPARATOR.join(one.name for one in self.inputs)

    def columns(self, sizes: Mapping[str, int]) -> list[tuple[int, int]]:
        """The first and the end of the rows or columns of each input. sizes: of the symbols in shapes, besides tokens and requests."""
        widths = [1 if self.per_token else _width(one, sizes) for one in self.inputs]
        ends = [sum(widths[: index + 1]) for index in range(len(widths))]
        return [(end - width, end) for width, end in zip(widths, ends, strict=True)]


def packed(inputs: Iterable[StepInput]) -> tuple[Packed, ...]:
    """The arrays that hold these inputs. Wide ones are left out: they stay on the device where no request needs them."""
    small = [one for one in inputs if not one.wide and len(one.shape) <= 2]
    kinds = (
        (True, tuple(one for one in small if per_token(one))),
        (False, tuple(one for one in small if not per_token(one))),
    )
    return tuple(Packed(found, kind) for kind, found in kinds if len(found) > 1)


def names_in(argument: str) -> list[str]:
    """The inputs that an argument holds: its own name, where it is not packed."""
    return argument.split(SEPARATOR)


def per_token(one: StepInput) -> bool:
    """Whether the input has one number for each token."""
    return one.shape == ("tokens",)


def per_request(one: StepInput) -> bool:
    """Whether the input has a row for each request, and none beyond."""
    return one.shape[:1] == ("requests",)


def _width(one: StepInput, sizes: Mapping[str, int]) -> int:
    """Columns: numbers per request, or all numbers of an input without a row per request."""
    if one.shape == ("requests+1",):
        return 1
    return prod(sizes[size] if isinstance(size, str) else size for size in one.shape[per_request(one) :])
