"""Reference of `fxhlo.copy_row` in eager torch."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from torch import Tensor

from ..spec import Operands


def copy_row(state: Tensor, source: Tensor, destination: Tensor) -> Tensor:
    """state [R, ...]; source, destination int32 []: rows, taken as the nearest that there is. Returns the state with row `source` in row `destination`
    as well."""
    last = state.shape[0] - 1
    read, written = (row.reshape(1).long().clamp(0, last) for row in (source, destination))
    return state.index_put((written,), state.index_select(0, read))


def check(state: Tensor, source: Tensor, destination: Tensor) -> None:
    """Raises IndexError for a row that is not there."""
    for name, row in (("source", int(source)), ("destination", int(destination))):
        if not 0 <= row < state.shape[0]:
            raise IndexError(f"copy_row: {name} is row {row}, the state has {state.shape[0]} rows")


def fake(state: Tensor, source: Tensor, destination: Tensor) -> Tensor:
    return state.new_empty(state.shape)


def work(operands: Operands, attributes: Mapping[str, Any]) -> tuple[float, float]:
    """Least (flops, bytes) of any implementation: a row is read and written."""
    state = operands.named["state"]
    return 0.0, 2.0 * prod(state.shape[1:]) * state.dtype.itemsize
