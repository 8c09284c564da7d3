"""`fxhlo.ragged_paged_lightning_index`: the implementation against the reference, the reference against its definition."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch

from fxhlo.kernels.lightning_index.reference import lightning_index
from fxhlo.kernels.paged_attention.cases import MIXED, values
from fxhlo.kernels.paged_lightning_index import KERNEL
from fxhlo.kernels.paged_lightning_index.cases import specs
from fxhlo.kernels.paged_lightning_index.reference import ragged_paged_lightning_index as reference
from fxhlo.kernels.paged_lightning_index.xla import lower

CHECKED = [case for case in KERNEL.cases() if case.values]


@pytest.mark.parametrize("case", CHECKED, ids=lambda case: case.name)
def test_the_positions_are_those_of_the_reference(case: object) -> None:
    arrays = case.values(np.random.default_rng(0))
    unused = np.ones(len(arrays["kv_cache"]), bool)
    unused[arrays["block_tables"][: len(MIXED)]] = False
    arrays["kv_cache"][unused] = np.nan
    expected, cache = reference(**{name: torch.from_numpy(array) for name, array in arrays.items()}, **case.attributes)
    found, updated = jax.jit(lambda operands: lower(**operands, **case.attributes))(arrays)
    np.testing.assert_array_equal(np.asarray(found), expected.numpy())
    np.testing.assert_array_equal(np.asarray(updated), cache.numpy())


def test_many_rows_share_the_keys_of_their_request() -> None:
    """More rows than ROWS_ALONE, in tiles: requests of several tiles, of a part of one, and none."""
    operands = specs(150, 16, 16, 8, 4, 20, dtype="float32")  # with few heads many scores are 0
    arrays = values(operands, [(3, 100), (0, 0), (40, 30)])(np.random.default_rng(2))
    expected, _ = reference(**{name: torch.from_numpy(array) for name, array in arrays.items()}, count=10)
    found, _ = jax.jit(lambda operands: lower(**operands, count=10))(arrays)
    np.testing.assert_array_equal(np.asarray(found)[:130], expected.numpy()[:130])
    assert (expected[130:] == -1).all()


def test_a_row_has_the_highest_of_the_positions_before_it() -> None:
    torch.manual_seed(0)
    query, key, weights = torch.randn(20, 3, 8), torch.randn(20, 8), torch.rand(20, 3)
    found = lightning_index(query, key, weights, layer="", count=5)
    for row, positions in enumerate(found.tolist()):
        scores = [
            sum(float(weights[row, head] * max(0.0, float(query[row, head] @ key[at]))) for head in range(3))
            for at in range(row + 1)
        ]
        best = sorted(sorted(range(row + 1), key=lambda at: -scores[at])[:5])
        assert positions == best + [-1] * (5 - len(best))
