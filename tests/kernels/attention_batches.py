"""Steps of requests over a paged cache of keys and values, and the check against the reference, for the tests of the kernel's Pallas forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from fxhlo.kernels.paged_attention.cases import values
from fxhlo.kernels.paged_attention.reference import ragged_paged_attention as reference
from fxhlo.kernels.spec import TensorSpec

TORCH = {"bfloat16": torch.bfloat16, "float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}


def to_torch(array: np.ndarray) -> torch.Tensor:
    dtype = TORCH.get(array.dtype.name)
    bits = {1: np.uint8, 2: np.int16}.get(array.dtype.itemsize)
    return torch.from_numpy(array) if dtype is None else torch.from_numpy(array.view(bits)).view(dtype)


def check_cache(updated: np.ndarray, cache: torch.Tensor, exact: bool) -> None:
    """Equal, any NaN being as good as another; a quotient by a scale may be rounded to the next number (in few bits seldom)."""
    ours, wanted = updated.astype(np.float32), cache.float().numpy()
    if exact:
        np.testing.assert_array_equal(ours, wanted)
        return
    step = {4: 2e-7, 2: 2**-7, 1: 2**-2}[updated.dtype.itemsize]  # between neighbours, as a part of them
    np.testing.assert_allclose(ours, wanted, rtol=step, atol=1 if updated.dtype == np.int8 else 2**-16)
    different = (ours != wanted) & ~np.isnan(wanted)
    assert updated.dtype.itemsize == 4 or different.sum() <= max(8, different.size * 1e-3)


def check(output: np.ndarray, updated: np.ndarray, arrays: dict[str, np.ndarray], attributes: dict[str, Any]) -> None:
    """Against the reference: the cache exactly, the output as its dtype allows."""
    tensors = {name: to_torch(array) for name, array in arrays.items()}
    expected, cache = reference(**{"sinks": None, "alibi_slopes": None, **tensors}, **attributes)
    check_cache(updated, cache, exact="k_scale" not in arrays and "v_scale" not in arrays)
    wanted = expected.float().numpy()
    tolerance = 1e-4 if output.dtype == np.float32 else 2e-2
    scale = max(1.0, float(np.abs(wanted).max(initial=0.0)))
    np.testing.assert_allclose(output.astype(np.float32), wanted, rtol=tolerance, atol=tolerance * scale)


def batch(
    operands: dict[str, TensorSpec], lengths: list[tuple[int, int]], seed: int, unwritten: float = 0.0, window: int = 0
) -> dict[str, np.ndarray]:
    """Requests of (tokens before this step, tokens of it); NaN wherever nothing was written and in pages that have left
    the window, and a part of the rows that are not written although they have a place."""
    rng = np.random.default_rng(seed)
    made = dict(values(operands, lengths)(rng))
    pages = made["kv_cache"]
    block_size = pages.shape[1]
    kept = np.zeros(pages.shape[:2], bool)
    for request, (done, _) in enumerate(lengths):
        first = max(0, done - window + 1) // block_size * block_size if window else 0
        for at in range(first, done):
            kept[made["block_tables"][request, at // block_size], at % block_size] = True
    if pages.dtype != np.int8:
        pages[~kept] = np.nan
    skipped = rng.random(len(made["slot_mapping"])) < unwritten
    for row in np.flatnonzero(skipped & (made["slot_mapping"] >= 0)):  # then it reads what lay there before
        slot = made["slot_mapping"][row]
        pages.reshape(-1, *pages.shape[2:])[slot] = np.ones(pages.shape[2:], pages.dtype)
        made["slot_mapping"][row] = rng.choice([-1, -(2**31), pages.shape[0] * block_size, 2**31 - 1])
    return made


@st.composite
def lengths_of(draw: Any, shape: tuple) -> list[tuple[int, int]]:
    """Requests that fit: none of them, some with no rows, whole prefills, single rows on long contexts."""
    tokens, *_, block_size, requests, pages = shape
    room, made = tokens, []
    for _ in range(draw(st.integers(0, requests))):
        new = draw(st.one_of(st.just(0), st.just(min(1, room)), st.integers(0, room)))
        limit = pages * block_size - new
        done = draw(st.one_of(st.integers(0, min(40, limit)), st.integers(0, limit), st.just(limit)))
        at = draw(st.sampled_from([done, done // block_size * block_size]))
        made.append((at if new else 0, new))
        room -= new
    return made
