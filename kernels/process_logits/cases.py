"""Cases of `fxhlo.process_logits`: vocabularies and batches of served models, with the list sizes of the vLLM plugin."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

from ..sample.cases import VOCABULARIES
from ..spec import Case, TensorSpec

BIASES, SEEN = 1024, 8192  # the defaults of passes/fx/sample.py


def specs(rows: int, size: int, dtype: np.dtype, biases: int = BIASES, seen: int = SEEN) -> dict[str, TensorSpec]:
    float32, int32 = np.dtype(np.float32), np.dtype(np.int32)
    operands = {
        "logits": TensorSpec((rows, size), dtype),
        "flags": TensorSpec((3,), int32),
        "allowed_mask": TensorSpec((rows, -(-size // 32)), int32),
        "bias_ids": TensorSpec((rows, biases), int32),
        "bias_values": TensorSpec((rows, biases), float32),
        "seen_ids": TensorSpec((rows, seen), int32),
        "seen_counts": TensorSpec((rows, seen), int32),
    }
    names = ("repetition_penalty", "frequency_penalty", "presence_penalty")
    return operands | {name: TensorSpec((rows,), float32) for name in names}


def values(
    rows: int, size: int, biases: int = BIASES, seen: int = SEEN
) -> Callable[[np.random.Generator], Mapping[str, np.ndarray]]:
    """Generates operands for all stages; each row uses a different part of its lists, with holes."""

    def make(rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        def some_ids(width: int) -> np.ndarray:
            ids = np.full((rows, width), -1, np.int32)
            for row in range(rows):
                count = rng.integers(0, min(width, size) + 1)
                ids[row, :count] = rng.permutation(size)[:count]
            ids[rng.random(ids.shape) < 0.05] = -1
            return ids

        seen_ids = some_ids(seen)
        return {
            "logits": (rng.standard_normal((rows, size)) * 4).astype(np.float32),
            "flags": np.ones(3, np.int32),
            "allowed_mask": rng.integers(-(2**31), 2**31, (rows, -(-size // 32))).astype(np.int32),
            "bias_ids": some_ids(biases),
            "bias_values": rng.uniform(-100, 100, (rows, biases)).astype(np.float32),
            "seen_ids": seen_ids,
            "seen_counts": np.where(seen_ids < 0, 0, rng.integers(0, 9, seen_ids.shape)).astype(np.int32),
            "repetition_penalty": rng.uniform(0.5, 2, rows).astype(np.float32),
            "frequency_penalty": rng.uniform(-2, 2, rows).astype(np.float32),
            "presence_penalty": rng.uniform(-2, 2, rows).astype(np.float32),
        }

    return make


def cases() -> tuple[Case, ...]:
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    made = [
        Case(f"{rows} rows, {size} tokens, bfloat16", specs(rows, size, bfloat16))
        for size in VOCABULARIES
        for rows in (1, 64, 256)
    ]
    checked = [
        Case(
            f"{rows} rows, {size} tokens, float32",
            specs(rows, size, np.dtype(np.float32), seen=2048),
            values=values(rows, size, seen=2048),
        )
        for rows, size in ((1, 151936), (8, 32000))
    ]
    return (*made, *checked)
