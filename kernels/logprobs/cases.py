"""Cases of `fxhlo.logprobs`: vocabularies and batches of served models."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

from ..sample.cases import VOCABULARIES
from ..spec import Case, TensorSpec

COUNT = 20  # the default of passes/fx/sample.py


def specs(rows: int, size: int, dtype: np.dtype) -> dict[str, TensorSpec]:
    int32 = np.dtype(np.int32)
    return {
        "logits": TensorSpec((rows, size), dtype),
        "tokens": TensorSpec((rows,), int32),
        "enabled": TensorSpec((), int32),
    }


def values(rows: int, size: int) -> Callable[[np.random.Generator], Mapping[str, np.ndarray]]:
    """Generates logits on a coarse grid, like bfloat16's, so that many are equal."""

    def make(rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        return {
            "logits": np.round(rng.standard_normal((rows, size)) * 256).astype(np.float32) / 64,
            "tokens": rng.integers(0, size, rows).astype(np.int32),
            "enabled": np.int32(1),  # type: ignore[dict-item]
        }

    return make


def cases() -> tuple[Case, ...]:
    made = [
        Case(f"{rows} rows, {size} tokens, bfloat16", specs(rows, size, np.dtype(ml_dtypes.bfloat16)), {"count": COUNT})
        for size in VOCABULARIES
        for rows in (1, 64, 256)
    ]
    checked = Case(
        "8 rows, 128256 tokens, float32",
        specs(8, 128256, np.dtype(np.float32)),
        {"count": COUNT},
        values(8, 128256),
        tolerance=1e-5,
    )
    return (*made, checked)
