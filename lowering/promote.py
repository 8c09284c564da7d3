"""torch's type promotion for rules: converts an op's operands to one dtype and one shape.

Operands are `Value`s or Python numbers. torch ranks tensors with dimensions above 0-d tensors, and those above numbers: a
lower rank decides the dtype only where its category (bool, integer, float, complex) is higher.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .build import broadcast, convert, full
from .types import Value

Operand = Value | int | float | bool | complex

NARROW_FLOATS = frozenset(
    {
        torch.bfloat16,
        torch.float16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.float8_e4m3fnuz,
        torch.float8_e5m2fnuz,
        torch.float8_e8m0fnu,
    }
)
_NUMBERS = {bool: torch.bool, int: torch.int64, float: torch.float32, complex: torch.complex64}


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which torch computes and accumulates values of `dtype`: float32 for 16-bit and 8-bit floats."""
    return torch.float32 if dtype in NARROW_FLOATS else dtype


def common_dtype(*operands: Operand) -> torch.dtype:
    """torch.result_type of the operands."""
    kinds: list[torch.dtype | None] = [None, None, None]
    for operand in operands:
        kind, dtype = _kind(operand)
        known = kinds[kind]
        kinds[kind] = dtype if known is None or known is dtype else torch.promote_types(known, dtype)
    result = _combine(kinds[0], _combine(kinds[1], kinds[2]))
    assert result is not None, "no operands"
    return result


def _kind(operand: Operand) -> tuple[int, torch.dtype]:
    """(rank: 0 for tensors with dimensions, 1 for 0-d ones, 2 for numbers; dtype)."""
    if isinstance(operand, Value):
        return (0 if operand.shape else 1), operand.dtype
    return 2, _NUMBERS[type(operand)]


def _combine(higher: torch.dtype | None, lower: torch.dtype | None) -> torch.dtype | None:
    """c10's combine_categories: the dtype of the higher rank, unless the lower rank's category is higher."""
    if higher is None or lower is None or higher is lower:
        return higher if higher is not None else lower
    if higher.is_complex or (higher.is_floating_point and not lower.is_complex):
        return higher
    if higher.is_floating_point:
        return higher.to_complex()
    if higher is torch.bool or lower.is_floating_point or lower.is_complex:
        return torch.promote_types(higher, lower)
    return higher


def shaped(operand: Operand, shape: tuple[int, ...], dtype: torch.dtype) -> Value:
    """Converts the operand to `dtype` and broadcasts it to `shape`; a number becomes a splat constant."""
    if not isinstance(operand, Value):
        return full(shape, dtype, operand)
    if operand.dtype is not dtype:
        operand = convert(operand, dtype)
    return operand if operand.shape == shape else broadcast(operand, shape)


def computed(function: Callable[..., Value], shape: tuple[int, ...], dtype: torch.dtype, *operands: Operand) -> Value:
    """Applies `function` to the operands, broadcast to `shape`, in `wide(dtype)` and rounds its result to `dtype` once, as torch does."""
    within = wide(dtype)
    return convert(function(*[shaped(operand, shape, within) for operand in operands]), dtype)


def exact(operand: Operand, dtype: torch.dtype) -> bool:
    """Whether converting the operand to `dtype` is exact; torch computes with the unrounded number where it is not."""
    if isinstance(operand, Value):
        return operand.dtype is dtype or bool(operand.shape) or not operand.dtype.is_floating_point
    return not isinstance(operand, float) or operand != operand or float(torch.tensor(operand, dtype=dtype)) == operand
