"""How far an implementation's results are from a kernel's reference. Needs torch, and nothing of the compiler."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..kernels.spec import Case, Kernel
from ..runtime.core.dtypes import DTYPES

if TYPE_CHECKING:
    import torch


def difference(kernel: Kernel, case: Case, results: Sequence[np.ndarray], arrays: Mapping[str, np.ndarray]) -> float:
    """The largest difference from the reference, as a fraction of its largest magnitude; infinite where integers differ."""
    tensors = {name: _tensor(array) for name, array in arrays.items()}
    absent = dict.fromkeys(
        name for name in inspect.signature(kernel.reference).parameters if name not in case.attributes
    )
    wanted = kernel.reference(**{**absent, **tensors}, **case.attributes)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    return max(_apart(np.asarray(mine), _array(one)) for mine, one in zip(results, wanted, strict=True))


def _tensor(array: np.ndarray) -> torch.Tensor:
    import torch

    flat = torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8).copy())
    return flat.view(getattr(torch, array.dtype.name)).reshape(array.shape)


def _array(tensor: torch.Tensor) -> np.ndarray:
    import torch

    dtype = DTYPES[str(tensor.dtype).removeprefix("torch.")].numpy
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().view(dtype).reshape(tensor.shape)


def _apart(mine: np.ndarray, wanted: np.ndarray) -> float:
    if mine.shape != wanted.shape or mine.dtype != wanted.dtype:
        return float("inf")
    if wanted.dtype.kind in "iub":
        return 0.0 if np.array_equal(mine, wanted) else float("inf")
    one, other = mine.astype(np.float64), wanted.astype(np.float64)
    finite = np.isfinite(other)
    if not np.array_equal(one[~finite], other[~finite], equal_nan=True):
        return float("inf")
    scale = float(np.abs(other[finite]).max(initial=0.0)) or 1.0
    return float(np.abs(one[finite] - other[finite]).max(initial=0.0)) / scale
