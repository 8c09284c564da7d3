"""Cases of `fxhlo.grouped_matmul`: experts of served models, in decode and prefill."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

from ..spec import Case, TensorSpec


def specs(rows: int, groups: int, inputs: int, outputs: int, dtype: np.dtype) -> dict[str, TensorSpec]:
    return {
        "values": TensorSpec((rows, inputs), dtype),
        "weights": TensorSpec((groups, outputs, inputs), dtype),
        "sizes": TensorSpec((groups,), np.dtype(np.int32)),
    }


def values(
    rows: int, groups: int, inputs: int, outputs: int, dtype: np.dtype
) -> Callable[[np.random.Generator], Mapping[str, np.ndarray]]:
    """Generates groups of various sizes, some empty; some rows belong to no group."""

    def make(rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        ends = np.sort(rng.integers(0, rows + 1, groups))
        return {
            "values": rng.standard_normal((rows, inputs)).astype(dtype),
            "weights": (rng.standard_normal((groups, outputs, inputs)) / inputs**0.5).astype(dtype),
            "sizes": np.diff(ends, prepend=0).astype(np.int32),
        }

    return make


def cases() -> tuple[Case, ...]:
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    shapes = {"Mixtral 8x7B": (8, 4096, 14336), "Qwen3 30B-A3B": (128, 2048, 768)}
    made = [
        Case(f"{name}, {rows} rows", specs(rows, *shape, bfloat16))
        for name, shape in shapes.items()
        for rows in (128, 2048)
    ]
    small = (24, 5, 64, 40)
    checked = Case("small", specs(*small, bfloat16), {}, values(*small, bfloat16), tolerance=1e-2)
    return (*made, checked)
