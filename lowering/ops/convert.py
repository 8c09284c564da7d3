"""Conversions between dtypes."""

from __future__ import annotations

from typing import Any

import torch

from ..build import bitcast, convert
from ..emit.context import Context
from ..registry import rule
from ..types import Value


@rule("aten._to_copy.default")
def to_copy(
    ctx: Context,
    self: Value,
    *,
    dtype: torch.dtype | None = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: bool | None = None,
    non_blocking: bool = False,
    memory_format: Any = None,
) -> Value:
    """Only the dtype matters in StableHLO. Floats outside an integer's range saturate (undefined in torch)."""
    return convert(self, ctx.dtype)


@rule("prims.convert_element_type.default")
def convert_element_type(ctx: Context, a: Value, dtype: torch.dtype) -> Value:
    return convert(a, ctx.dtype)


@rule("aten.view.dtype")
def view_dtype(ctx: Context, self: Value, dtype: torch.dtype) -> Value:
    """Reinterprets the bits; the last dimension grows or shrinks if the widths differ."""
    return bitcast(self, dtype)
