"""Greedy sampling from columns that are split over devices gives the token of the whole row."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from fxhlo.kernels.sample import xla_split
from fxhlo.kernels.sample.reference import sample

ROWS, WIDTH = 9, 24


def rows() -> np.ndarray:
    """Random rows; equal best logits in two parts; NaN, infinities, and nothing but one of them."""
    logits = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)
    logits[1, [5, 20]] = 9.0
    logits[2, 3] = np.nan
    logits[3] = np.nan
    logits[4] = -np.inf
    logits[5, [2, 22]] = np.inf
    logits[6, :20] = -np.inf
    logits[7, 21] = 3e38
    return logits


def greedy(logits: np.ndarray) -> np.ndarray:
    number = len(logits)
    zeros, ones = torch.zeros(number), torch.ones(number)
    integers = torch.zeros(number, dtype=torch.int32)
    seeds = torch.zeros(number, 2, dtype=torch.int32)
    found: np.ndarray = sample(torch.from_numpy(logits), zeros, integers, ones, zeros, seeds, integers).numpy()
    return found


@pytest.mark.parametrize("devices", [2, 3, 4, 8])
def test_the_best_of_the_parts_best_is_the_best(devices: int) -> None:
    logits, size = rows(), WIDTH // devices
    parts = [np.ascontiguousarray(logits[:, number * size :][:, :size]) for number in range(devices)]
    candidates = [
        xla_split.candidate(jnp.asarray(part), jnp.asarray(greedy(part)), jnp.asarray(number * size, jnp.int32))
        for number, part in enumerate(parts)
    ]
    tokens = np.asarray(xla_split.winner(jnp.concatenate(candidates)))
    assert tokens.tolist() == greedy(logits).tolist()


@pytest.mark.parametrize(
    ("flags", "temperature", "enabled", "needed"),
    [
        ([0, 0, 0], [0.0, 0.0], 0, False), ([0, 1, 0], [0.0, 0.0], 0, True), ([0, 0, 0], [0.0, 0.7], 0, True),
        ([0, 0, 0], [0.0, 0.0], 2, True), ([0, 0, 0], [1e-6, 0.0], 0, False),
    ],
)  # fmt: skip
def test_which_steps_need_all_logits(flags: list[int], temperature: list[float], enabled: int, needed: bool) -> None:
    given = jnp.asarray(flags, jnp.int32), jnp.asarray(temperature, jnp.float32), jnp.asarray(enabled, jnp.int32)
    assert bool(xla_split.whole_needed(*given)) is needed
