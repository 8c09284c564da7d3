"""Cases of `fxhlo.ragged_ssd`, heads and groups of served models, and how a step of the kernels with a state per request is generated."""

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
    tokens: int, heads: int, size: int, groups: int, keys: int, requests: int,
    *, dtype: np.dtype = BFLOAT16, state: np.dtype = FLOAT32,
) -> dict[str, TensorSpec]:  # fmt: skip
    shapes = {
        "x": (tokens, heads, size), "dt": (tokens, heads), "a": (heads,), "b": (tokens, groups, keys), "c": (tokens, groups, keys),
        "d": (heads,), "dt_bias": (heads,),
    }  # fmt: skip
    return operands_of(shapes, (heads, size, keys), requests, dtype, state)


def cases() -> tuple[Case, ...]:
    checked = {
        "mixed, 8 heads of 64, state 128": specs(40, 8, 64, 1, 128, 6, dtype=FLOAT32),
        "mixed, 4 heads of 16 in 2 groups, state 24": specs(40, 4, 16, 2, 24, 6, dtype=FLOAT32),
    }
    return tuple(Case(name, operands, {}, values(operands, MIXED), 2e-5) for name, operands in checked.items())
