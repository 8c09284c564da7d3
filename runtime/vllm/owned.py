"""Which part of a weight the devices of this host hold, and a copy into any view of the weight that reads no more than that part.

Comes in: stretches of a weight along each dimension, a view of the weight that a loader writes, and what is written there. Goes out: the elements
that were copied. Guaranteed: every element of the part has its value; others may have any.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch

Owned = tuple[tuple[slice, ...], ...]
"""For each dimension of a weight the stretches of it that are held, in order and apart from each other; the part is where all dimensions meet."""


def merged(shape: Sequence[int], devices: Iterable[Owned]) -> Owned | None:
    """What these devices hold together, which may be less than the meeting of all dimensions; None where that is the whole weight."""
    found = []
    for size, *each in zip(shape, *devices, strict=True):
        joined: list[slice] = []
        for one in sorted((one for stretches in each for one in stretches), key=lambda one: one.start):
            if joined and one.start <= joined[-1].stop:
                joined[-1] = slice(joined[-1].start, max(one.stop, joined[-1].stop))
            else:
                joined.append(one)
        found.append(tuple(joined) or (slice(0, size),))
    whole = all(one == (slice(0, size),) for one, size in zip(found, shape, strict=True))
    return None if whole else tuple(found)


class _Along(NamedTuple):
    """Where a view lies along one dimension of a weight: the view's own dimension, None where it has a single index; its first index and size."""

    dimension: int | None
    first: int
    size: int


def copy_owned(view: torch.Tensor, values: torch.Tensor, weight: torch.Tensor, owned: Owned) -> int | None:
    """Copies the part of `values` that is held into `view`, a view of `weight`, which is contiguous. Returns the bytes that were read of
    `values`; None, and copies nothing, where the view is no rectangle of the weight, or the values have another shape."""
    lying = _lying(view, weight)
    if lying is None or values.shape != view.shape:
        return None
    choices: list[list[tuple[int, int, int]]] = []
    for along, stretches in zip(lying, owned, strict=True):
        inside = list(_inside(along, stretches))
        if not inside:
            return 0
        if along.dimension is not None and inside != [(0, along.size)]:
            choices.append([(along.dimension, first, size) for first, size in inside])
    read = 0
    for chosen in product(*choices):
        into, of = view, values
        for dimension, first, size in chosen:
            into, of = into.narrow(dimension, first, size), of.narrow(dimension, first, size)
        into.copy_(of)
        read += of.nbytes
    return read


def _inside(along: _Along, stretches: Iterable[slice]) -> Iterator[tuple[int, int]]:
    """(first index in the view, size) of each stretch's part in it."""
    for one in stretches:
        first, last = max(one.start, along.first), min(one.stop, along.first + along.size)
        if first < last:
            yield first - along.first, last - first


def _lying(view: torch.Tensor, weight: torch.Tensor) -> list[_Along] | None:
    """Where the view lies along each dimension of the weight; None where it is no rectangle of it, with its dimensions in any order."""
    by_stride = {
        stride: dimension
        for dimension, (stride, size) in enumerate(zip(weight.stride(), weight.shape, strict=True))
        if size > 1
    }
    found: list[_Along] = []
    left = int(view.storage_offset())
    for stride, size in zip(weight.stride(), weight.shape, strict=True):
        first, left = divmod(left, stride) if size > 1 else (0, left)
        found.append(_Along(None, first, 1))
    for dimension, (stride, size) in enumerate(zip(view.stride(), view.shape, strict=True)):
        if size == 1:
            continue
        at = by_stride.get(stride)
        if at is None or found[at].dimension is not None or found[at].first + size > weight.shape[at]:
            return None
        found[at] = _Along(dimension, found[at].first, size)
    return found
