"""Scaled dot product attention taken apart: torch's numbers, and grouped heads whose keys are not repeated; flex_attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from differential import check, execute, lowered
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from fxhlo.lowering.decompositions.attention import scaled_dot_product_attention
from fxhlo.lowering.lower import lower
from fxhlo.passes.hlo.legalize import legalize

attention = torch.nn.functional.scaled_dot_product_attention
MASKS = {
    "none": lambda heads, dtype: None,
    "bool": lambda heads, dtype: torch.rand(5, 7) > 0.5,
    "bool per head": lambda heads, dtype: torch.rand(2, heads, 5, 7) > 0.7,
    "added": lambda heads, dtype: torch.randn(2, 1, 5, 7, dtype=dtype),
    "nothing is seen": lambda heads, dtype: torch.zeros(5, 7, dtype=torch.bool),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("heads", [(4, 4), (8, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_is_what_torch_computes(mask: str, heads: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    many, few = heads
    query, key, value = (torch.randn(2, n, rows, 16, dtype=dtype) for n, rows in ((many, 5), (few, 7), (few, 7)))
    given = MASKS[mask](many, dtype)
    mine = scaled_dot_product_attention(query, key, value, given, enable_gqa=many != few)
    wide = torch.promote_types(dtype, torch.float32)  # torch's own kernel for bfloat16 rounds in between
    mask_ = given if given is None or given.dtype == torch.bool else given.to(wide)
    wanted = attention(query.to(wide), key.to(wide), value.to(wide), mask_, enable_gqa=many != few)
    torch.testing.assert_close(mine, wanted.to(dtype))


@pytest.mark.parametrize("causal", [False, True])
def test_grouped_heads_are_lowered_without_copies_of_their_keys(causal: bool) -> None:
    torch.manual_seed(0)

    class Attention(torch.nn.Module):
        def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            return attention(query, key, value, is_causal=causal, scale=0.3, enable_gqa=True)

    arguments = (torch.randn(3, 8, 5, 16), torch.randn(3, 2, 5, 16), torch.randn(3, 2, 5, 16))
    module = lower(Attention(), arguments)
    assert module.text.count("stablehlo.dot_general") == 2
    assert "tensor<6x20x16xf32>, tensor<6x16x5xf32>" in module.text  # 4 heads of 5 rows with the keys of their group
    torch.testing.assert_close(torch.from_dlpack(module.compile()(*arguments)[0]), Attention()(*arguments))


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize(
    ("query", "key", "value", "grouped"),
    [
        ((2, 4), (2, 1), (2, 1), False),  # one head of keys for all, without enable_gqa: Falcon
        ((2, 4), (2, 4), (1, 4), False), ((2, 4), (4,), (4,), False), ((4,), (2, 1), (2, 4), False), ((), (), (), False),
        ((1, 4), (3, 4), (3, 4), False), ((2, 4), (2, 2), (2, 4), True), ((2, 4), (1, 2), (2, 1), True),
    ],
)  # fmt: skip
def test_leading_dimensions_are_broadcast(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], grouped: bool, mask: bool
) -> None:
    def attend(*operands: torch.Tensor) -> torch.Tensor:
        return attention(*operands, enable_gqa=grouped)

    torch.manual_seed(0)
    operands = [torch.randn(*query, 5, 8), torch.randn(*key, 7, 8), torch.randn(*value, 7, 6)]
    check(attend, *operands, *[torch.rand(5, 7) > 0.3] * mask)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("width", [8, 6])
def test_views_of_the_result_count_on_the_strides_of_torch(width: int, mask: bool, dynamic: bool) -> None:
    """Heads side by side where torch takes its own kernel (Data2VecVision, JetMoe), one after the other where it does not."""

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *mask: torch.Tensor) -> torch.Tensor:
        attended = attention(query.transpose(1, 2), key, value, *mask)
        if width == 8:
            return attended.permute(0, 2, 1, 3).contiguous().view(-1, 5, 4 * 8)
        return attended.contiguous().view(-1, 4 * 5, 6)

    torch.manual_seed(0)
    operands = [torch.randn(2, 5, 4, 8), torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, width)]
    operands += [torch.randn(1, 4, 5, 7)] * mask
    sizes = [{0: torch.export.Dim.DYNAMIC}] * 3 + [None] * mask
    check(attend, *operands, dynamic=sizes if dynamic else None)


def test_dropout_leaves_its_share_of_the_weights_scaled() -> None:
    """Every weight is 1 / 64, and the values pick them one by one: a result is 0 or 1 / 64 / (1 - p)."""
    query, value = torch.zeros(1, 2, 64, 8), torch.eye(64).expand(1, 2, 64, 64)
    outcome = execute(lowered(lambda q, v: attention(q, q, v, dropout_p=0.25), (query, value)), (query, value))
    weights = outcome.results[0]
    kept = weights != 0
    torch.testing.assert_close(weights[kept], torch.full_like(weights[kept], 1 / 64 / 0.75))
    assert 0.7 < kept.float().mean() < 0.8


def test_rows_that_see_nothing_and_numbers_that_are_none() -> None:
    """Zeros where a row sees no key; NaN where what it sees is NaN, and not where it is masked (torch adds -infinity to it)."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 4, 8) for _ in range(3))
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0]], dtype=torch.bool)
    wanted = attention(query, key, value, mask)
    key[0, 0, 1, 0] = torch.nan
    wanted[0, 0, 2:] = torch.nan
    mine = scaled_dot_product_attention(query, key, value, mask)
    torch.testing.assert_close(mine, wanted, equal_nan=True)
    assert not mine[0, :, 1].any()


def test_scores_are_looked_at_for_their_maximum_and_their_sum_alone() -> None:
    query = torch.randn(1, 2, 4, 8)
    module = lower(masked_attention(), (query, query, query, torch.ones(4, 4, dtype=torch.bool)))
    assert module.text.count("stablehlo.reduce(") == 2


def masked_attention() -> torch.nn.Module:
    class Attention(torch.nn.Module):
        def forward(
            self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
        ) -> torch.Tensor:
            return attention(query, key, value, mask)

    return Attention()


@pytest.mark.parametrize("causal", [False, True])
def test_long_sequences_become_the_composite(causal: bool) -> None:
    """Of bfloat16 and without a mask: flash attention on a TPU, the plain form elsewhere, torch's numbers in both."""
    torch.manual_seed(0)

    class Attention(torch.nn.Module):
        def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            return attention(query, key, value, is_causal=causal, enable_gqa=True)

    query, key, value = (torch.randn(2, heads, 577, 16, dtype=torch.bfloat16) for heads in (4, 2, 2))
    hlo = lower(Attention(), (query, key, value))
    wanted = attention(query.float(), key.float(), value.float(), is_causal=causal, enable_gqa=True)
    made = torch.from_dlpack(hlo.compile()(query, key, value)[0])
    torch.testing.assert_close(made.float(), wanted, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(
        scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=True).float(),
        wanted,
        rtol=2e-2,
        atol=2e-2,
    )
    for target, implementation in (("cpu", "xla"), ("tpu-v6e", "flash")):
        decisions = legalize(hlo.bytecode, target).decisions
        assert [(one.kernel, one.implementation) for one in decisions] == [("fxhlo.attention", implementation)]


@pytest.mark.parametrize(
    ("rows", "keys", "dtype", "causal"),
    [
        (511, 511, torch.bfloat16, False), (600, 600, torch.float32, False), (1, 600, torch.bfloat16, False),
        (520, 600, torch.bfloat16, True),
    ],
)  # fmt: skip
def test_others_stay_as_they_are(rows: int, keys: int, dtype: torch.dtype, causal: bool) -> None:
    class Attention(torch.nn.Module):
        def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            return attention(query, key, value, is_causal=causal)

    query, key = torch.randn(1, 2, rows, 16, dtype=dtype), torch.randn(1, 2, keys, 16, dtype=dtype)
    assert "stablehlo.composite" not in lower(Attention(), (query, key, key)).text


class Flex(torch.nn.Module):
    """flex_attention whose score reads a parameter, with a mask by blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.slopes = torch.nn.Parameter(torch.randn(2))
        self.mask = create_block_mask(lambda b, h, i, j: (i >= j) & (i - j < 4), 1, 1, 16, 16, device="cpu")

    def forward(self, q: torch.Tensor) -> torch.Tensor:
        return flex_attention(q, q, q, lambda score, b, h, i, j: score + self.slopes[h] * (i - j), self.mask)


HEADS = torch.randn(1, 2, 16, 8)


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (Flex(), (HEADS,)),
        (lambda q: flex_attention(q, q, q, return_lse=True), (HEADS,)),
        (lambda q, k: flex_attention(q, k, k, enable_gqa=True, scale=0.3), (torch.randn(2, 4, 8, 8), torch.randn(2, 2, 12, 8))),
        (lambda q: flex_attention(q, q, q, lambda score, b, h, i, j: torch.where(i > j, score, -torch.inf)), (HEADS.to(torch.bfloat16),)),
    ],
    ids=["score and mask", "sums", "grouped", "rows that see nothing"],
)  # fmt: skip
def test_flex_attention(function: Callable[..., Any], args: tuple[torch.Tensor, ...]) -> None:
    check(function, *args)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_rows_without_keys_are_zeros(heads: tuple[int, int]) -> None:
    many, few = heads
    query, key, value = torch.randn(2, many, 3, 8), torch.randn(2, few, 0, 8), torch.randn(2, few, 0, 5)
    check(lambda query, key, value: attention(query, key, value, enable_gqa=many != few), query, key, value)
    check(attention, query, query[:, :, :0], query[:, :, :0], torch.zeros(3, 0, dtype=torch.bool))
