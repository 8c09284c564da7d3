"""Types on both sides: torch dtypes, MLIR element types and numpy dtypes, and the `Value` a rule works with."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from ..passes.mlir import ir
from ..runtime.core.dtypes import DTYPES, Dtype
from .errors import LoweringError

ELEMENTS: dict[torch.dtype, Dtype] = {
    getattr(torch, dtype.name): dtype
    for dtype in DTYPES.values()
    if hasattr(torch, dtype.name) and (dtype.bits >= 8 or dtype.name == "bool")
}
"""The dtypes that a lowered module may have, by torch's. Torch's names are numpy's; its types of less than a byte have no ops."""
FROM_NUMPY = {dtype.numpy: torch_dtype for torch_dtype, dtype in ELEMENTS.items()}


def numpy_dtype(dtype: torch.dtype) -> np.dtype:
    """The numpy (ml_dtypes) dtype of a torch dtype; LoweringError where StableHLO has none."""
    try:
        return ELEMENTS[dtype].numpy
    except KeyError:
        raise LoweringError(
            f"{dtype} has no StableHLO element type", next_step="convert the tensor to a supported dtype"
        ) from None


class TensorType(NamedTuple):
    """A static tensor type: what a fake tensor says under one binding of the symbols."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def mlir_type(shape: tuple[int, ...], dtype: torch.dtype) -> ir.Type:
    """`tensor<...>` in the current context."""
    return _mlir_type(tuple(shape), dtype, ir.Context.current)


@lru_cache(maxsize=4096)
def _mlir_type(shape: tuple[int, ...], dtype: torch.dtype, context: ir.Context) -> ir.Type:
    if dtype not in ELEMENTS:
        raise LoweringError(
            f"{dtype} has no StableHLO element type", next_step="convert the tensor to a supported dtype"
        )
    dims = "".join(f"{size}x" for size in shape)
    return ir.Type.parse(f"tensor<{dims}{ELEMENTS[dtype].stablehlo}>", context)


class Value:
    """An SSA value with the torch-side type beside it, so that no rule has to ask MLIR for a shape."""

    __slots__ = ("dtype", "ir", "shape")

    def __init__(self, value: ir.Value, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.ir = value
        self.shape = shape
        self.dtype = dtype

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def type(self) -> TensorType:
        return TensorType(self.shape, self.dtype)

    def __repr__(self) -> str:
        return f"Value({list(self.shape)}, {self.dtype})"
