"""Types on both sides: torch dtypes, MLIR element types and numpy dtypes, and the `Value` a rule works with."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import ml_dtypes
import numpy as np
import torch

from ..passes.mlir import ir
from .errors import LoweringError

# torch dtype -> (MLIR element type, numpy dtype)
ELEMENTS: dict[torch.dtype, tuple[str, np.dtype]] = {
    torch.bool: ("i1", np.dtype(np.bool_)),
    torch.int8: ("i8", np.dtype(np.int8)),
    torch.int16: ("i16", np.dtype(np.int16)),
    torch.int32: ("i32", np.dtype(np.int32)),
    torch.int64: ("i64", np.dtype(np.int64)),
    torch.uint8: ("ui8", np.dtype(np.uint8)),
    torch.uint16: ("ui16", np.dtype(np.uint16)),
    torch.uint32: ("ui32", np.dtype(np.uint32)),
    torch.uint64: ("ui64", np.dtype(np.uint64)),
    torch.float16: ("f16", np.dtype(np.float16)),
    torch.bfloat16: ("bf16", np.dtype(ml_dtypes.bfloat16)),
    torch.float32: ("f32", np.dtype(np.float32)),
    torch.float64: ("f64", np.dtype(np.float64)),
    torch.complex64: ("complex<f32>", np.dtype(np.complex64)),
    torch.complex128: ("complex<f64>", np.dtype(np.complex128)),
    torch.float8_e4m3fn: ("f8E4M3FN", np.dtype(ml_dtypes.float8_e4m3fn)),
    torch.float8_e5m2: ("f8E5M2", np.dtype(ml_dtypes.float8_e5m2)),
    torch.float8_e4m3fnuz: ("f8E4M3FNUZ", np.dtype(ml_dtypes.float8_e4m3fnuz)),
    torch.float8_e5m2fnuz: ("f8E5M2FNUZ", np.dtype(ml_dtypes.float8_e5m2fnuz)),
    torch.float8_e8m0fnu: ("f8E8M0FNU", np.dtype(ml_dtypes.float8_e8m0fnu)),
}
FROM_NUMPY = {numpy: torch_dtype for torch_dtype, (_, numpy) in ELEMENTS.items()}


def numpy_dtype(dtype: torch.dtype) -> np.dtype:
    """The numpy (ml_dtypes) dtype of a torch dtype; LoweringError where StableHLO has none."""
    try:
        return ELEMENTS[dtype][1]
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
    return ir.Type.parse(f"tensor<{dims}{ELEMENTS[dtype][0]}>", context)


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
