"""Types in torch, MLIR and numpy, and `Value`, the operand and result of rules."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

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
    return _element(dtype).numpy


def _element(dtype: torch.dtype) -> Dtype:
    try:
        return ELEMENTS[dtype]
    except KeyError:
        raise LoweringError(
            f"{dtype} has no StableHLO element type", next_step="convert the tensor to a supported dtype"
        ) from None


def _element_type(name: str) -> Callable[[], ir.Type]:
    """A function that returns the element type `name` in the current context; for common ones three times as fast as parsing the name."""
    if name.startswith("i"):
        return partial(ir.IntegerType.get_signless, int(name[1:]))
    if name.startswith("ui"):
        return partial(ir.IntegerType.get_unsigned, int(name[2:]))
    common: dict[str, Callable[[], ir.Type]] = {
        "f16": ir.F16Type.get,
        "bf16": ir.BF16Type.get,
        "f32": ir.F32Type.get,
        "f64": ir.F64Type.get,
    }
    return common.get(name) or partial(ir.Type.parse, name)


_ELEMENT_TYPES = {dtype: _element_type(element.stablehlo) for dtype, element in ELEMENTS.items()}


class TensorType(NamedTuple):
    """A static tensor type: a fake tensor's shape and dtype with its symbols bound."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def mlir_type(shape: tuple[int, ...], dtype: torch.dtype) -> ir.Type:
    """`tensor<...>` in the current context; LoweringError where StableHLO has no such element type.

    Not cached: a cache would keep contexts alive, with the modules in them, and MLIR finds an existing type in 0.4 us.
    """
    if dtype not in _ELEMENT_TYPES:
        _element(dtype)  # raises LoweringError
    return ir.RankedTensorType.get(shape, _ELEMENT_TYPES[dtype]())


class Value:
    """An SSA value with its torch type, so that no rule has to ask MLIR for a shape."""

    __slots__ = ("dtype", "ir", "shape")

    def __init__(self, value: ir.Value[Any], shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.ir = value
        self.shape = shape
        self.dtype = dtype

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def type(self) -> TensorType:
        """Shape and dtype."""
        return TensorType(self.shape, self.dtype)

    def __repr__(self) -> str:
        return f"Value({list(self.shape)}, {self.dtype})"
