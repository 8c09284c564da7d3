"""Cases of `fxhlo.ragged_gated_delta_rule`: heads of Qwen3-Next (a decay a head) and Kimi Linear (a decay a channel)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ragged_causal_conv1d.cases import BFLOAT16, FLOAT32, MIXED, operands_of, values
from ..spec import Case, TensorSpec


def specs(
    tokens: int, key_heads: int, heads: int, keys: int, size: int, requests: int,
    *, channels: bool = False, dtype: np.dtype = BFLOAT16, state: np.dtype = FLOAT32,
) -> dict[str, TensorSpec]:  # fmt: skip
    shapes = {
        "q": (tokens, key_heads, keys), "k": (tokens, key_heads, keys), "v": (tokens, heads, size),
        "g": (tokens, heads, keys) if channels else (tokens, heads), "beta": (tokens, heads),
    }  # fmt: skip
    return operands_of(shapes, (heads, size, keys), requests, dtype, state)


def cases() -> tuple[Case, ...]:
    named: dict[str, Any] = {"scale": 128**-0.5, "l2norm": True}
    served = [
        Case("decode, 32 heads of 128 by 128 (Qwen3-Next)", specs(64, 16, 32, 128, 128, 64), named),
        Case("prefill, 32 heads of 128 by 128 (Qwen3-Next)", specs(1024, 16, 32, 128, 128, 8), named),
        Case("decode, 32 heads of 128 by 128 (Kimi Linear)", specs(64, 32, 32, 128, 128, 64, channels=True), named),
    ]
    checked = {
        "mixed, 4 heads of 16 by 128 on 2": specs(40, 2, 4, 128, 16, 6, dtype=FLOAT32),
        "mixed, 3 heads of 16 by 128, a decay a channel": specs(40, 3, 3, 128, 16, 6, channels=True, dtype=FLOAT32),
        "mixed, 4 heads of 12 by 24 on 2": specs(40, 2, 4, 24, 12, 6, dtype=FLOAT32),
    }
    return (*served, *(Case(name, one, named, values(one, MIXED), 5e-5) for name, one in checked.items()))
