"""`fxhlo.ragged_paged_attention` over devices that have other blocks of the cache: their parts, merged, are the reference."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from fxhlo.kernels.paged_attention.partition_xla import NOWHERE, merged, own_pages, own_slots, part, weighted
from fxhlo.kernels.paged_attention.reference import ragged_paged_attention

BLOCKS, SIZE, PAGES, HEADS, KV_HEADS, WIDTH = 24, 4, 6, 4, 2, 8
# with few rows each attends alone; with many (40 of padding) those of a request do together
CONTEXTS = [(0, 9), (13, 5), (22, 1), (3, 1)]
"""(tokens before this step, tokens of it) of each request."""
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"sliding_window": 6},
    "chunk": {"chunk": 8},
    "cap": {"soft_cap": 3.0},
    "sinks": {"sinks": np.array([0.5, -1.0, 2.0, 0.0], np.float32)},
    "alibi": {"alibi_slopes": np.array([0.5, 0.25, 0.125, 0.0625], np.float32)},
}


def batch(padding: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    tokens = sum(new for _, new in CONTEXTS) + padding
    free = iter(random.permutation(np.arange(1, BLOCKS)))
    tables, slots, lengths = np.zeros((len(CONTEXTS), PAGES), np.int32), [], []
    for row, (before, new) in enumerate(CONTEXTS):
        used = -(-(before + new) // SIZE)
        tables[row, :used] = [next(free) for _ in range(used)]
        slots += [tables[row, at // SIZE] * SIZE + at % SIZE for at in range(before, before + new)]
        lengths.append(before + new)
    bounds = np.cumsum([0, *(new for _, new in CONTEXTS)])

    def rows(heads: int) -> np.ndarray:
        return random.standard_normal((tokens, heads, WIDTH)).astype(np.float32)

    return {
        "query": rows(HEADS), "key": rows(KV_HEADS), "value": rows(KV_HEADS),
        "kv_cache": random.standard_normal((BLOCKS, SIZE, 2 * KV_HEADS, WIDTH)).astype(np.float32),
        "slot_mapping": np.array([*slots, *[-1] * padding], np.int32), "block_tables": tables,
        "seq_lens": np.array(lengths, np.int32), "query_start_loc": bounds.astype(np.int32),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "padding", "devices"),
    [*[(options, 3, 2) for options in OPTIONS], ("plain", 40, 3), ("sinks", 40, 2)],
)
def test_parts_that_are_merged_are_the_reference(options: str, padding: int, devices: int) -> None:
    given, named = batch(padding), {"sliding_window": 0, "soft_cap": 0.0, "chunk": 0, "scale": 0.3} | OPTIONS[options]
    tensors = {name: torch.from_numpy(array) for name, array in given.items()}
    wanted = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in named.items()
    }
    right, cache = ragged_paged_attention(**tensors, **{"sinks": None, "alibi_slopes": None} | wanted)
    attributes = {name: value for name, value in named.items() if not isinstance(value, np.ndarray)}
    more = {name: value for name, value in named.items() if isinstance(value, np.ndarray)}
    run = jax.jit(lambda operands, number: part(**operands, **attributes, number=number, devices=devices))
    parts, highest, caches = [], [], []
    for number in range(devices):
        own = given | more | {"kv_cache": given["kv_cache"][number::devices]}
        found = run(own, jnp.int32(number))
        for into, one in zip((parts, highest, caches), found, strict=True):
            into.append(one)
    overall = jnp.stack(highest).max(axis=0)
    total = sum(map(partial(weighted, overall=overall), parts, highest))
    np.testing.assert_allclose(merged(total, dtype="float32"), right.numpy(), rtol=2e-5, atol=2e-5)
    for number, one in enumerate(caches):
        np.testing.assert_array_equal(one, cache.numpy()[number::devices])


def test_where_rows_are_written_and_which_pages_a_device_has() -> None:
    """Blocks 4, 3, 8 and 6 of a request of 14 tokens, on device 0 of two, which has the even ones."""
    slots = np.array([4 * SIZE + 1, 3 * SIZE, -1, 6 * SIZE + 3], np.int32)
    assert own_slots(jnp.array(slots), SIZE, 0, 2).tolist() == [2 * SIZE + 1, -1, -1, 3 * SIZE + 3]
    pages = own_pages(jnp.array([[4, 3, 8, 6, 0, 0]], jnp.int32), jnp.array([14], jnp.int32), SIZE, 0, 2)
    assert pages[0, :, 0].tolist() == [2, 4, 3, 0, 0, 0]
    assert pages[0, :, 1].tolist() == [0, 2, 3, *[NOWHERE // SIZE] * 3]
