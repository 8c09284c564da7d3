"""Cases of `fxhlo.quantized_matmul`: a layer of Llama 3.1 8B, by weight dtype and number of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

from ..spec import Case, TensorSpec

WEIGHTS = {
    "int8": (np.dtype(np.int8), 8),
    "float8": (np.dtype(ml_dtypes.float8_e4m3fn), 8),
    "int4": (np.dtype(np.int8), 4),
}


def specs(rows: int, inputs: int, outputs: int, weight: str, dtype: np.dtype) -> dict[str, TensorSpec]:
    kind, bits = WEIGHTS[weight]
    return {
        "values": TensorSpec((rows, inputs), dtype),
        "weight": TensorSpec((outputs, inputs * bits // 8), kind),
        "scale": TensorSpec((outputs,), np.dtype(np.float32)),
    }


def values(
    rows: int, inputs: int, outputs: int, weight: str, dtype: np.dtype
) -> Callable[[np.random.Generator], Mapping[str, np.ndarray]]:
    kind, bits = WEIGHTS[weight]

    def make(rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        shape = (outputs, inputs * bits // 8)
        integers = rng.integers(-128, 128, shape).astype(np.int8)
        return {
            "values": rng.standard_normal((rows, inputs)).astype(dtype),
            "weight": integers if kind == np.int8 else rng.standard_normal(shape).astype(np.float32).astype(kind),
            "scale": rng.uniform(0.01, 0.1, outputs).astype(np.float32),
        }

    return make


def cases() -> tuple[Case, ...]:
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    made = [
        Case(f"{weight}, {rows} rows, 4096 by 14336", specs(rows, 4096, 14336, weight, bfloat16), {"bits": bits})
        for weight, (_, bits) in WEIGHTS.items()
        for rows in (8, 64, 1024)
    ]
    small = (5, 64, 24)
    checked = [
        Case(
            f"{weight}, small",
            specs(*small, weight, bfloat16),
            {"bits": bits},
            values(*small, weight, bfloat16),
            tolerance=1e-2,
        )
        for weight, (_, bits) in WEIGHTS.items()
    ]
    return (*made, *checked)
