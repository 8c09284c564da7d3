"""float8: what torch does with it (copies, conversions, views, joins, indices, scaled products), one module a dtype."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from differential import check

DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
NUMBERS = torch.tensor([[0.0, -0.0, 1.0, -1.5], [448, -3, float("nan"), 1e-3], [2, 3, 4, 5]])
ROWS = torch.tensor([0, 2, -1])
CALLS: dict[str, Callable[[torch.Tensor], object]] = {
    "conversions": lambda x: (x.float(), x.bfloat16() * 2, x.to(torch.float16), x.double(), x.clone(), x.bool()),
    "shapes": lambda x: (x.view(2, 6), x.t(), x[1:, ::2], x[1], x[:1].expand(5, 4), x.flip(0), x.roll(1), x.repeat(2, 1), x.unfold(0, 2, 1)),
    "joins": lambda x: (torch.cat([x, x]), torch.stack([x, x], 1), x.split(2), torch.nn.functional.pad(x, (1, 1)), torch.slice_scatter(x, x[:1], 0, 1, 2)),
    "indices": lambda x: (x[ROWS], x.index_select(0, ROWS[:2]), x.index_put((ROWS[:1],), x[1]), torch.nn.functional.embedding(ROWS[:2], x)),
    "creation": lambda x: (torch.zeros_like(x), torch.ones_like(x), torch.full((3,), 1.5, dtype=x.dtype), torch.eye(3, dtype=x.dtype)),
    "tests and choices": lambda x: (x == x.flip(0), x.isnan(), torch.where(x.float() > 0, x, x.flip(0)), x.view(torch.int8), x.abs()),
    "in place": lambda x: (x.copy_(x.float() * 2), x.fill_(2.0)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_what_torch_does_with_float8(name: str, dtype: torch.dtype) -> None:
    check(CALLS[name], NUMBERS.to(dtype))


@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int32])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_out_of_range(dtype: torch.dtype, source: torch.dtype) -> None:
    """e4m3fn has no infinity and takes its largest number, e5m2 has one."""
    numbers = torch.tensor([896.0, 448, 464, 465, 480, 500, -3e4, 60000, 0, 13, -13])
    specials = torch.tensor(
        [float("inf"), float("-inf"), float("nan"), 1e-9, -0.0] if source.is_floating_point else [7]
    )
    check(lambda x: x.to(dtype).float(), torch.cat([numbers, specials]).to(source))
