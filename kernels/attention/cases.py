"""Cases of `fxhlo.attention`: sequences without a KV cache, of decoders and encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

from ..spec import Case, TensorSpec

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def specs(tokens: int, heads: int, kv_heads: int, size: int, keys: int | None = None) -> dict[str, TensorSpec]:
    shapes = {"query": (tokens, heads), "key": (keys or tokens, kv_heads), "value": (keys or tokens, kv_heads)}
    return {name: TensorSpec((*shape, size), BFLOAT16) for name, shape in shapes.items()}


def attributes(size: int, *, causal: bool = True) -> dict[str, object]:
    return {"layer": "0", "scale": size**-0.5, "sliding_window": 0, "soft_cap": 0.0, "causal": causal, "chunk": 0}


def values(
    tokens: int, heads: int, kv_heads: int, size: int, keys: int | None = None
) -> Callable[[np.random.Generator], Mapping[str, np.ndarray]]:
    def make(rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        return {
            name: rng.standard_normal(spec.shape).astype(BFLOAT16)
            for name, spec in specs(tokens, heads, kv_heads, size, keys).items()
        }

    return make


CAUSAL = ((2048, 16, 16, 64), (2048, 32, 8, 128), (8192, 32, 8, 128), (1024, 8, 8, 256), (1000, 16, 16, 64))
ENCODERS = {
    "512 tokens of BERT": (512, 16, 16, 64),
    "577 patches of CLIP": (577, 16, 16, 64),
    "729 patches of SigLIP": (729, 16, 16, 72),
    "1500 frames of Whisper": (1500, 20, 20, 64),
    "8192 patches, 16 heads of 80": (8192, 16, 16, 80),
    "197 patches of ViT": (197, 12, 12, 64),
}


def cases() -> tuple[Case, ...]:
    causal = [
        Case(f"{shape[0]} tokens, {shape[1]} heads on {shape[2]}, head {shape[3]}", specs(*shape), attributes(shape[3]))
        for shape in CAUSAL
    ]
    encoders = [
        Case(f"not causal, {name}", specs(*shape), attributes(shape[3], causal=False))
        for name, shape in ENCODERS.items()
    ]
    checked = [
        Case(name, specs(*shape), attributes(shape[3], causal=causal), values(*shape), tolerance=2e-2)
        for name, shape, causal in (
            ("256 tokens, checked", (256, 4, 2, 64), True),
            ("not causal, 256 tokens, checked", (256, 4, 2, 64), False),
            ("not causal, 128 tokens on 600 keys, checked", (128, 4, 2, 80, 600), False),
        )
    ]
    return (*causal, *encoders, *checked)
