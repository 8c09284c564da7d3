"""Cases of `fxhlo.ragged_causal_conv1d`, channels of Qwen3-Next, and how a step of the kernels with a state per request is generated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import ml_dtypes
import numpy as np

from ..spec import Case, TensorSpec

INT32, FLOAT32, BFLOAT16 = np.dtype(np.int32), np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)
Lengths = Sequence[tuple[int, int]]
"""Requests as (tokens before this step, rows in this step)."""
MIXED: Lengths = ((40, 1), (0, 21), (5, 12), (0, 1))
Make = Callable[[np.random.Generator], Mapping[str, np.ndarray]]


WIDE = ("a", "d", "dt_bias", "slopes", "g", "beta")
"""Operands that are float32 in a bfloat16 model."""


def operands_of(
    shapes: Mapping[str, tuple[int, ...]], state: tuple[int, ...], requests: int, dtype: np.dtype, state_dtype: np.dtype
) -> dict[str, TensorSpec]:
    """Operands by shape, and those of a step: a state for each of `requests` and the scratch slot, and the requests."""
    named = {name: TensorSpec(shape, FLOAT32 if name in WIDE else dtype) for name, shape in shapes.items()}
    return named | {
        "state": TensorSpec((requests + 1, *state), state_dtype),
        "state_slots": TensorSpec((requests,), INT32),
        "seq_lens": TensorSpec((requests,), INT32),
        "query_start_loc": TensorSpec((requests + 1,), INT32),
    }


def values(operands: Mapping[str, TensorSpec], lengths: Lengths) -> Make:
    """Generates a step of these requests, their states in shuffled slots from 1 on; further requests have no rows and slot 0.

    Steps `dt` and decays `a` and `g` are those of trained models: steps of 0.001 to 0.1, decays below 0. Rates `beta` are in (0, 1).
    """

    def make(rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        made: dict[str, np.ndarray] = {
            name: rng.standard_normal(spec.shape, np.float32) for name, spec in operands.items()
        }
        for name in ("a", "g"):
            if name in made:
                made[name] = -np.exp(made[name])
        if "beta" in made:
            made["beta"] = 1 / (1 + np.exp(-made["beta"]))
        if "slopes" in made:
            made["slopes"] = np.exp(made["slopes"] - 2)
        if "dt_bias" in made:
            made["dt_bias"] -= 4
        requests = operands["state_slots"].shape[0]
        padding = [(0, 0)] * (requests - len(lengths))
        slots = rng.permutation(np.arange(1, operands["state"].shape[0]))[: len(lengths)]
        made["state_slots"] = np.array([*slots, *(0 for _ in padding)])
        made["seq_lens"] = np.array([done + new for done, new in [*lengths, *padding]])
        made["query_start_loc"] = np.cumsum([0, *(new for _, new in [*lengths, *padding])])
        return {name: array.astype(operands[name].dtype) for name, array in made.items()}

    return make


def specs(
    tokens: int, channels: int, taps: int, requests: int, *, bias: bool = False, dtype: np.dtype = BFLOAT16
) -> dict[str, TensorSpec]:
    shapes = {"values": (tokens, channels), "weight": (channels, taps)} | ({"bias": (channels,)} if bias else {})
    return operands_of(shapes, (taps - 1, channels), requests, dtype, dtype)


def cases() -> tuple[Case, ...]:
    served = [
        Case(f"{what}, 8192 channels of 4 (Qwen3-Next)", specs(tokens, 8192, 4, requests), {"silu": True})
        for what, tokens, requests in (("decode", 64, 64), ("prefill", 1024, 8))
    ]
    checked = {
        "mixed, 24 channels of 4, a bias": (specs(40, 24, 4, 6, bias=True, dtype=FLOAT32), True),
        "mixed, 128 channels of 3": (specs(40, 128, 3, 6, dtype=FLOAT32), False),
    }
    return (
        *served,
        *(Case(name, one, {"silu": silu}, values(one, MIXED), 2e-6) for name, (one, silu) in checked.items()),
    )
