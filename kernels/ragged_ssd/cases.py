"""Cases of `fxhlo.ragged_ssd`: heads and groups of served models."""

from __future__ import annotations

import numpy as np

from ..ragged_causal_conv1d.cases import BFLOAT16, FLOAT32, MIXED, operands_of, values
from ..spec import Case, TensorSpec


def specs(
    tokens: int, heads: int, size: int, groups: int, keys: int, requests: int,
    *, dtype: np.dtype = BFLOAT16, state: np.dtype = FLOAT32,
) -> dict[str, TensorSpec]:  # fmt: skip
    shapes = {
        "x": (tokens, heads, size), "dt": (tokens, heads), "a": (heads,), "b": (tokens, groups, keys), "c": (tokens, groups, keys),
        "d": (heads,), "dt_bias": (heads,),
    }  # fmt: skip
    return operands_of(shapes, (heads, size, keys), requests, dtype, state)


def cases() -> tuple[Case, ...]:
    served = [
        Case(f"{what}, 80 heads of 64, state 128 (Mamba 2 2.7B)", specs(tokens, 80, 64, 1, 128, requests))
        for what, tokens, requests in (("decode", 64, 64), ("prefill", 1024, 8))
    ]
    checked = {
        "mixed, 8 heads of 64, state 128": specs(40, 8, 64, 1, 128, 6, dtype=FLOAT32),
        "mixed, 4 heads of 16 in 2 groups, state 24": specs(40, 4, 16, 2, 24, 6, dtype=FLOAT32),
    }
    return (*served, *(Case(name, one, {}, values(one, MIXED), 2e-5) for name, one in checked.items()))
