"""Cases of `fxhlo.varlen_attention`: a step of texts to embed, of one length or of many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import ml_dtypes
import numpy as np

from ..spec import Case, TensorSpec

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def specs(
    tokens: int, heads: int, kv_heads: int, size: int, requests: int, dtype: np.dtype = BFLOAT16
) -> dict[str, TensorSpec]:
    return {
        "query": TensorSpec((tokens, heads, size), dtype),
        "key": TensorSpec((tokens, kv_heads, size), dtype),
        "value": TensorSpec((tokens, kv_heads, size), dtype),
        "query_start_loc": TensorSpec((requests + 1,), np.dtype(np.int32)),
    }


def attributes(size: int, *, causal: bool = False, sliding_window: int = 0, soft_cap: float = 0.0) -> dict[str, object]:
    return {"scale": size**-0.5, "sliding_window": sliding_window, "soft_cap": soft_cap, "causal": causal}


def values(
    operands: Mapping[str, TensorSpec], lengths: Sequence[int]
) -> Callable[[np.random.Generator], Mapping[str, np.ndarray]]:
    """lengths: of the sequences; requests beyond them have no rows, rows beyond their sum are padding."""

    def make(rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        made = {
            name: rng.standard_normal(operands[name].shape).astype(operands[name].dtype)
            for name in ("query", "key", "value")
        }
        starts = np.full(operands["query_start_loc"].shape, sum(lengths), np.int32)
        starts[: len(lengths) + 1] = np.cumsum([0, *lengths])
        return made | {"query_start_loc": starts}

    return make


SHAPES = {
    "1024 tokens, 12 heads of 64 (BERT, ModernBERT)": (1024, 12, 12, 64, 64),
    "8192 tokens, 12 heads of 64": (8192, 12, 12, 64, 64),
    "1024 tokens, 32 heads on 8 of 128 (Llama, Qwen3)": (1024, 32, 8, 128, 64),
    "1024 tokens, 4 heads on 1 of 256 (Gemma 3)": (1024, 4, 1, 256, 64),
    "64 tokens, 12 heads of 64": (64, 12, 12, 64, 64),
}


def cases() -> tuple[Case, ...]:
    plain = [Case(name, specs(*shape), attributes(shape[3])) for name, shape in SHAPES.items()]
    windows = [
        Case(
            "1024 tokens, 12 heads of 64, a window of 64 (ModernBERT)",
            specs(1024, 12, 12, 64, 64),
            attributes(64, sliding_window=65),
        )
    ]
    small = specs(256, 4, 2, 64, 6)
    checked = [
        Case(
            f"{name}, 256 tokens, checked",
            small,
            attributes(64, **changed),  # type: ignore[arg-type]
            values(small, (100, 1, 0, 77)),
            tolerance=2e-2,
        )
        for name, changed in {
            "bidirectional": {},
            "causal": {"causal": True},
            "window": {"sliding_window": 17, "soft_cap": 5.0},
        }.items()
    ]
    return (*plain, *windows, *checked)
