"""Cases of `fxhlo.moe`: the experts of served models, in decode and prefill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from ..spec import Case, TensorSpec

SILU = {"activation": "silu", "limit": 0.0, "alpha": 1.0, "beta": 0.0, "weight_on_input": False}
OPENAI = {"activation": "swigluoai", "limit": 7.0, "alpha": 1.702, "beta": 1.0, "weight_on_input": False}


@dataclass(frozen=True)
class Mixture:
    """experts: how many; top: how many a row chooses; hidden, inner: a row's size outside and inside an expert."""

    experts: int
    top: int
    hidden: int
    inner: int
    gated: bool = True
    biases: bool = False

    def specs(self, rows: int, dtype: np.dtype) -> dict[str, TensorSpec]:
        width = self.inner * (2 if self.gated else 1)
        made = {
            "x": TensorSpec((rows, self.hidden), dtype),
            "w13": TensorSpec((self.experts, width, self.hidden), dtype),
            "w2": TensorSpec((self.experts, self.hidden, self.inner), dtype),
            "topk_weights": TensorSpec((rows, self.top), np.dtype(np.float32)),
            "topk_ids": TensorSpec((rows, self.top), np.dtype(np.int32)),
        }
        if self.biases:
            made["w13_bias"] = TensorSpec((self.experts, width), dtype)
            made["w2_bias"] = TensorSpec((self.experts, self.hidden), dtype)
        return made

    def values(self, rows: int, dtype: np.dtype) -> Callable[[np.random.Generator], Mapping[str, np.ndarray]]:
        """Generates rows that choose distinct experts; one in eight choices is of no expert, as in a padded row."""
        specs = self.specs(rows, dtype)

        def make(rng: np.random.Generator) -> Mapping[str, np.ndarray]:
            ids = np.stack([rng.permutation(self.experts)[: self.top] for _ in range(rows)]).astype(np.int32)
            nobody = rng.choice(np.array([-1, self.experts], np.int32), ids.shape)
            made = {
                name: (rng.standard_normal(spec.shape) / (spec.shape[-1] ** 0.5 if spec.shape[2:] else 1)).astype(dtype)
                for name, spec in specs.items()
            }
            made["topk_weights"] = rng.random(ids.shape, np.float32)
            made["topk_ids"] = np.where(rng.random(ids.shape) < 1 / 8, nobody, ids)
            return made

        return make


MODELS: Mapping[str, tuple[Mixture, Mapping[str, Any]]] = {
    "Mixtral 8x7B": (Mixture(8, 2, 4096, 14336), SILU),
    "Qwen3 30B-A3B": (Mixture(128, 8, 2048, 768), SILU),
    "gpt-oss 120b": (Mixture(128, 4, 2880, 2880, biases=True), OPENAI),
    "DeepSeek V3, 64 of 256 experts": (Mixture(64, 8, 7168, 2048), SILU),  # all of them are 21 GiB, more than a v5e has
    "Qwen3-Next 80B": (Mixture(512, 10, 2048, 512), SILU),
}


def cases() -> tuple[Case, ...]:
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    made = [
        Case(f"{name}, {rows} rows", mixture.specs(rows, bfloat16), attributes)
        for name, (mixture, attributes) in MODELS.items()
        for rows in (8, 32, 2048)
    ]
    small = {
        "small": (Mixture(5, 3, 64, 40), SILU),
        "small, biases": (Mixture(8, 2, 64, 48, biases=True), OPENAI),
        "small, one projection": (Mixture(4, 1, 64, 40, gated=False), SILU | {"activation": "relu2_no_mul"}),
        "small, weights on the input": (Mixture(4, 1, 64, 40), SILU | {"weight_on_input": True}),
    }
    checked = [
        Case(name, mixture.specs(24, bfloat16), attributes, mixture.values(24, bfloat16), tolerance=1e-2)
        for name, (mixture, attributes) in small.items()
    ]
    return (*made, *checked)
