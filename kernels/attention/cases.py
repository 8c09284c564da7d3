"""The matrix of `fxhlo.attention`: sequences without a cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

from ..spec import Case, TensorSpec

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def specs(tokens: int, heads: int, kv_heads: int, size: int) -> dict[str, TensorSpec]:
    counts = {"query": heads, "key": kv_heads, "value": kv_heads}
    return {name: TensorSpec((tokens, count, size), BFLOAT16) for name, count in counts.items()}


def attributes(size: int) -> dict[str, object]:
    return {"layer": "0", "scale": size**-0.5, "sliding_window": 0, "soft_cap": 0.0}


def values(
    tokens: int, heads: int, kv_heads: int, size: int
) -> Callable[[np.random.Generator], Mapping[str, np.ndarray]]:
    def make(rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        return {
            name: rng.standard_normal(spec.shape).astype(BFLOAT16)
            for name, spec in specs(tokens, heads, kv_heads, size).items()
        }

    return make


def cases() -> tuple[Case, ...]:
    shapes = ((2048, 16, 16, 64), (2048, 32, 8, 128), (8192, 32, 8, 128), (1024, 8, 8, 256), (1000, 16, 16, 64))
    made = [
        Case(f"{shape[0]} tokens, {shape[1]} heads on {shape[2]}, head {shape[3]}", specs(*shape), attributes(shape[3]))
        for shape in shapes
    ]
    small = (256, 4, 2, 64)
    checked = Case("256 tokens, checked", specs(*small), attributes(64), values(*small), tolerance=2e-2)
    return (*made, checked)
