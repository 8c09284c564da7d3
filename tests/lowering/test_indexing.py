"""Indices that are 0-d tensors among others, sizes that the caller gives for a result whose size depends on data, and grids."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from differential import check
from torch.nn.functional import affine_grid

ROWS, AT = torch.tensor([0, 2]), torch.tensor(2)
X, Y = torch.arange(12.0).reshape(3, 4), torch.arange(60.0).reshape(3, 4, 5)


@pytest.mark.parametrize(
    "index",
    [
        lambda a, t: (a, t), lambda a, t: (t, a), lambda a, t: (..., t), lambda a, t: (t, ...), lambda a, t: (a, slice(1, 3), t),
        lambda a, t: (t, slice(None), a), lambda a, t: (1, a, t), lambda a, t: (a.reshape(2, 1), t, a), lambda a, t: (..., t, a),
        lambda a, t: (t, 1), lambda a, t: (slice(1), ..., t), lambda a, t: (a[0], t, a[1]),
    ],
)  # fmt: skip
def test_a_0d_tensor_among_indices(index: Any) -> None:
    def read_and_written(x: torch.Tensor, a: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, ...]:
        written, filled = x.clone(), x.clone()
        written[index(a, t)] = x[index(a, t)] + 100
        filled[index(a, t)] = -1
        return x[index(a, t)], written, filled

    check(read_and_written, Y, ROWS, AT)


def test_repeat_interleave_of_a_given_size() -> None:
    def repeated(x: torch.Tensor, counts: torch.Tensor) -> list[torch.Tensor]:
        return [
            x.repeat_interleave(counts, dim=0, output_size=6),
            torch.repeat_interleave(counts, output_size=6),
            torch.repeat_interleave(counts.int(), output_size=6),
            x.t().repeat_interleave(counts, 1, output_size=6),
        ]

    check(repeated, X, torch.tensor([1, 2, 3]))
    check(repeated, X, torch.tensor([0, 6, 0]))


def test_affine_grids_with_axes_of_one_element() -> None:
    def grids(plane: torch.Tensor, volume: torch.Tensor) -> list[torch.Tensor]:
        sizes = [(2, 1, 1, 5), (2, 1, 4, 1), (2, 3, 1, 1), (2, 1, 3, 4)]
        flat = [affine_grid(plane, size, align_corners=corners) for size in sizes for corners in (False, True)]
        deep = [
            affine_grid(volume, size, align_corners=corners)
            for size in ((2, 1, 1, 5, 1), (2, 1, 2, 3, 4))
            for corners in (False, True)
        ]
        return flat + deep

    check(grids, torch.randn(2, 2, 3), torch.randn(2, 3, 4))
