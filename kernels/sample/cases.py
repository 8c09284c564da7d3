"""Cases of `fxhlo.sample`: vocabularies and batches of served models."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

from ..spec import Case, TensorSpec

VOCABULARIES = {32000: "Llama 2", 128256: "Llama 3", 151936: "Qwen 3", 256000: "Gemma"}


def specs(rows: int, size: int, dtype: np.dtype) -> dict[str, TensorSpec]:
    float32, int32 = np.dtype(np.float32), np.dtype(np.int32)
    row = {"temperature": float32, "top_k": int32, "top_p": float32, "min_p": float32}
    operands = {"logits": TensorSpec((rows, size), dtype)}
    operands |= {name: TensorSpec((rows,), dtype) for name, dtype in row.items()}
    return operands | {"seeds": TensorSpec((rows, 2), int32), "steps": TensorSpec((rows,), int32)}


def values(rows: int, size: int) -> Callable[[np.random.Generator], Mapping[str, np.ndarray]]:
    """Generates logits like a model's, and rows of every kind of request."""

    def make(rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        logits = rng.standard_normal((rows, size)).astype(np.float32) * 3
        index = np.arange(rows)
        return {
            "logits": logits,
            "temperature": np.array([0.0, 0.7, 1.0, 1.3], np.float32)[index % 4],
            "top_k": np.array([0, 50, 0, 1000, 1], np.int32)[index % 5],
            "top_p": np.array([1.0, 0.9, 0.95], np.float32)[index % 3],
            "min_p": np.array([0.0, 0.0, 0.02], np.float32)[index % 3],
            "seeds": rng.integers(-(2**31), 2**31, (rows, 2)).astype(np.int32),
            "steps": rng.integers(0, 4096, rows).astype(np.int32),
        }

    return make


def cases() -> tuple[Case, ...]:
    made = []
    for size in VOCABULARIES:
        for rows in (1, 64, 256):
            checked = values(rows, size) if rows == 1 or (rows, size) == (64, 32000) else None
            made.append(
                Case(f"{rows} rows, {size} tokens", specs(rows, size, np.dtype(np.float32)), {}, values=checked)
            )
    narrow = specs(64, 128256, np.dtype(ml_dtypes.bfloat16))
    return (*made, Case("64 rows, 128256 tokens, bfloat16", narrow))
