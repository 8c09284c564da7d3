"""Cases of `fxhlo.ragged_lightning_attention`: heads of MiniMax."""

from __future__ import annotations

import numpy as np

from ..ragged_causal_conv1d.cases import BFLOAT16, FLOAT32, MIXED, operands_of, values
from ..spec import Case, TensorSpec


def specs(
    tokens: int, heads: int, size: int, requests: int, *, dtype: np.dtype = BFLOAT16, state: np.dtype = FLOAT32
) -> dict[str, TensorSpec]:
    rows = dict.fromkeys(("q", "k", "v"), (tokens, heads, size))
    return operands_of(rows | {"slopes": (heads,)}, (heads, size, size), requests, dtype, state)


def cases() -> tuple[Case, ...]:
    served = [
        Case(f"{what}, 64 heads of 128 (MiniMax-Text-01)", specs(tokens, 64, 128, requests))
        for what, tokens, requests in (("decode", 64, 64), ("prefill", 1024, 8))
    ]
    checked = {
        "mixed, 2 heads of 128": specs(40, 2, 128, 6, dtype=FLOAT32),
        "mixed, 3 heads of 24": specs(40, 3, 24, 6, dtype=FLOAT32),
    }
    return (*served, *(Case(name, one, {}, values(one, MIXED), 2e-5) for name, one in checked.items()))
