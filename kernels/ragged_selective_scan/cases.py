"""Cases of `fxhlo.ragged_selective_scan`: channels of Falcon Mamba and Jamba."""

from __future__ import annotations

import numpy as np

from ..ragged_causal_conv1d.cases import BFLOAT16, FLOAT32, MIXED, operands_of, values
from ..spec import Case, TensorSpec


def specs(
    tokens: int, channels: int, keys: int, requests: int,
    *, bias: bool = True, dtype: np.dtype = BFLOAT16, state: np.dtype = FLOAT32,
) -> dict[str, TensorSpec]:  # fmt: skip
    shapes = {
        "x": (tokens, channels), "dt": (tokens, channels), "a": (channels, keys), "b": (tokens, keys), "c": (tokens, keys),
        "d": (channels,),
    }  # fmt: skip
    return operands_of(shapes | ({"dt_bias": (channels,)} if bias else {}), (channels, keys), requests, dtype, state)


def cases() -> tuple[Case, ...]:
    served = [
        Case(f"{what}, 8192 channels, state 16 (Falcon Mamba, Jamba)", specs(tokens, 8192, 16, requests))
        for what, tokens, requests in (("decode", 64, 64), ("prefill", 1024, 8))
    ]
    checked = {
        "mixed, 128 channels, state 16": specs(40, 128, 16, 6, dtype=FLOAT32),
        "mixed, 24 channels, state 6, no bias": specs(40, 24, 6, 6, bias=False, dtype=FLOAT32),
    }
    return (*served, *(Case(name, one, {}, values(one, MIXED), 2e-5) for name, one in checked.items()))
