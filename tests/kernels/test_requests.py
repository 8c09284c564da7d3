"""Attention of devices that have the caches of other requests: each with the rows of its own, put together, is the reference."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from fxhlo.kernels import paged_attention, paged_latent_attention
from fxhlo.kernels.requests import ROWS, put_back, taken

BLOCKS, SIZE, PAGES, HEADS, KV_HEADS, WIDTH, LATENT = 48, 4, 6, 4, 2, 8, 12
# (tokens before this step, tokens of it, the device) of each request; requests 1 and 4 end the step's rows of their devices
CONTEXTS = [(0, 9, 1), (13, 5, 0), (22, 1, 1), (3, 1, 1), (7, 1, 0)]
BATCH = ("slot_mapping", "block_tables", "seq_lens", "query_start_loc")


def batch(devices: int, padding: int, behind: int, window: int) -> dict[str, np.ndarray]:
    """padding: rows that belong to no request; behind: requests without rows. Blocks that a window has left are vLLM's block for none, 0."""
    random, per = np.random.default_rng(7), BLOCKS // devices
    free = [iter(random.permutation(np.arange(max(1, part * per), (part + 1) * per))) for part in range(devices)]
    count = len(CONTEXTS) + behind
    tables, slots = np.zeros((count, PAGES), np.int32), []
    lengths = np.zeros(count, np.int32)
    for row, (before, new, device) in enumerate(CONTEXTS):
        used = -(-(before + new) // SIZE)
        left = max(0, before - window + 1) // SIZE if window else 0
        tables[row, left:used] = [next(free[device % devices]) for _ in range(left, used)]
        slots += [tables[row, at // SIZE] * SIZE + at % SIZE for at in range(before, before + new)]
        lengths[row] = before + new
    bounds = np.cumsum([0, *(new for _, new, _ in CONTEXTS), *[0] * behind])
    return {
        "slot_mapping": np.array([*slots, *[-1] * padding], np.int32), "block_tables": tables, "seq_lens": lengths,
        "query_start_loc": bounds.astype(np.int32),
    }  # fmt: skip


def of_heads(tokens: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    made = {name: (tokens, heads, WIDTH) for name, heads in (("query", HEADS), ("key", KV_HEADS), ("value", KV_HEADS))}
    made["kv_cache"] = (BLOCKS, SIZE, 2 * KV_HEADS, WIDTH)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in made.items()}


def of_latents(tokens: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    rotary = 4
    shapes = {
        "query": (tokens, HEADS, WIDTH + rotary), "latent": (tokens, LATENT + rotary), "w_uk": (HEADS, WIDTH, LATENT),
        "w_uv": (HEADS, LATENT, WIDTH), "kv_cache": (BLOCKS, SIZE, LATENT + rotary),
    }  # fmt: skip
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("kind", "devices", "padding", "window"),
    [("heads", 2, 3, 0), ("heads", 3, 0, 0), ("heads", 2, 3, 6), ("latents", 2, 3, 0), ("latents", 4, 40, 0)],
)
def test_the_rows_of_all_devices_are_the_reference(kind: str, devices: int, padding: int, window: int) -> None:
    kernel = (paged_attention if kind == "heads" else paged_latent_attention).KERNEL
    given = batch(devices, padding, 2, window)
    tokens, random = len(given["slot_mapping"]), np.random.default_rng(3)
    values = {**(of_heads if kind == "heads" else of_latents)(tokens, random), **given}
    attributes: dict[str, Any] = {"scale": 0.3, "sliding_window": window}
    absent: dict[str, Any] = {}
    if kind == "heads":
        attributes |= {"soft_cap": 0.0, "chunk": 0}
        absent = {"sinks": None, "alibi_slopes": None}
    right, cache = kernel.reference(
        **{name: torch.from_numpy(one) for name, one in values.items()}, **absent, **attributes
    )
    lower, per = kernel.implementations[-1].lower, BLOCKS // devices
    rows = [name for name in values if name in ROWS]

    @jax.jit
    def run(operands: dict[str, jax.Array], number: jax.Array) -> tuple[jax.Array, jax.Array]:
        mine = {name: operands[name] for name in (*rows, *BATCH)}
        *own, places = taken(**mine, number=number, block_size=SIZE, blocks=per)
        output, updated = lower(**{**operands, **dict(zip(mine, own, strict=True))}, **attributes)
        return put_back(output, places), updated

    total = np.zeros(right.shape, np.float32)
    for number in range(devices):
        part = slice(number * per, (number + 1) * per)
        output, updated = run({**values, "kv_cache": values["kv_cache"][part]}, jnp.int32(number))
        np.testing.assert_array_equal(updated, cache.numpy()[part])
        assert not (total * np.asarray(output)).any()  # a row is on one device alone
        total += np.asarray(output)
    np.testing.assert_allclose(total, right.numpy(), rtol=2e-5, atol=2e-5)
