"""`fxhlo.varlen_attention`: its reference against torch's own attention, one sequence at a time, and the plain and the Pallas form
against the reference. test_native.py has the native kernel."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from fxhlo.kernels.catalog import register_torch_ops
from fxhlo.kernels.spec import Operands
from fxhlo.kernels.varlen_attention import reference, tpu, xla
from fxhlo.kernels.varlen_attention.cases import attributes, specs, values

FLOAT32 = np.dtype(np.float32)


def made(lengths: list[int], tokens: int, heads: int, kv_heads: int, size: int, requests: int) -> dict[str, np.ndarray]:
    return dict(values(specs(tokens, heads, kv_heads, size, requests, FLOAT32), lengths)(np.random.default_rng(tokens)))


def expected(operands: dict[str, np.ndarray], **named: Any) -> np.ndarray:
    tensors = {name: torch.from_numpy(np.ascontiguousarray(one)) for name, one in operands.items()}
    return reference.varlen_attention(**tensors, **named).numpy()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [0, 1, 4])
def test_each_sequence_is_torchs_own_attention(causal: bool, window: int) -> None:
    lengths = [7, 1, 0, 12]
    operands = made(lengths, 24, 4, 2, 16, 6)
    found = expected(operands, **attributes(16, causal=causal, sliding_window=window))
    starts = operands["query_start_loc"]
    for begin, end in pairwise(starts):
        q, k, v = (torch.from_numpy(operands[name][begin:end]).transpose(0, 1) for name in ("query", "key", "value"))
        at = torch.arange(end - begin)
        apart = at[:, None] - at[None, :]
        mask = (apart.abs() < (window or 100)) & ((apart >= 0) if causal else True)
        wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        np.testing.assert_allclose(found[begin:end], wanted.transpose(0, 1).numpy(), rtol=1e-5, atol=1e-5)
    assert not found[sum(lengths) :].any()


@settings(max_examples=7, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 9, 127, 128, 129, 140]), min_size=1, max_size=4), padding=st.sampled_from([0, 1, 130]),
    kv_heads=st.integers(1, 2), group=st.integers(1, 3), causal=st.booleans(), window=st.sampled_from([0, 1, 5, 128, 200]),
    soft_cap=st.sampled_from([0.0, 5.0]), sinks=st.booleans(),
)  # fmt: skip
def test_the_plain_form_gives_the_reference(
    lengths: list[int], padding: int, kv_heads: int, group: int, causal: bool, window: int, soft_cap: float, sinks: bool
) -> None:
    tokens, heads = max(1, sum(lengths) + padding), kv_heads * group
    operands = made(lengths, tokens, heads, kv_heads, 8, len(lengths) + 1)
    for name in ("query", "key", "value"):
        operands[name][sum(lengths) :] = np.nan  # rows of padding may hold anything
    if sinks:
        operands["sinks"] = np.linspace(-2, 2, heads, dtype=FLOAT32)
    named = attributes(8, causal=causal, sliding_window=window, soft_cap=soft_cap)
    result = np.asarray(jax.jit(lambda given: xla.lower(**given, **named))(operands))
    np.testing.assert_allclose(result, expected(operands, **named), rtol=2e-5, atol=2e-5)


def test_what_is_no_number_stays_in_its_sequence() -> None:
    operands = made([20, 18], 40, 2, 1, 8, 3)
    operands["value"][8, 0, 3] = np.inf
    named = attributes(8, sliding_window=4)
    result, right = (
        np.asarray(jax.jit(lambda given: xla.lower(**given, **named))(operands)),
        expected(operands, **named),
    )
    np.testing.assert_allclose(result, right, rtol=2e-5, atol=2e-5)
    assert np.isnan(right).any(axis=(1, 2)).nonzero()[0].tolist() == [*range(5, 12)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("tokens", "size"), [(256, 64), (600, 80)])
def test_the_pallas_form_gives_the_reference(tokens: int, size: int, causal: bool) -> None:
    operands = specs(tokens, 4, 2, size, 6)
    given = dict(values(operands, [100, 1, 0, 77])(np.random.default_rng(0)))
    for name in ("query", "key", "value"):
        given[name][178:] = np.nan
    named = attributes(size, causal=causal)
    assert tpu.supports(Operands.of(operands, operands.values()), named) is None
    with pltpu.force_tpu_interpret_mode(True):
        result = jax.jit(lambda given: tpu.lower(**given, **named))(given)
    floats = {name: one if one.dtype == np.int32 else one.astype(np.float32) for name, one in given.items()}
    np.testing.assert_allclose(np.asarray(result, np.float32), expected(floats, **named), rtol=2e-2, atol=2e-2)


def test_what_pallas_does_not_take_has_a_reason() -> None:
    def refusal(tokens: int = 256, size: int = 64, **changed: Any) -> str | None:
        operands = specs(tokens, 4, 2, size, 2)
        return tpu.supports(Operands.of(operands, operands.values()), attributes(size, **changed))

    assert refusal() is None
    assert refusal(causal=True) is None
    assert "window" in str(refusal(sliding_window=8))
    assert "soft cap" in str(refusal(soft_cap=5.0))
    assert "head size of 81" in str(refusal(size=81))
    assert "64 tokens are no multiple of 128" in str(refusal(tokens=64))


def test_eager_torch_refuses_rows_outside_the_batch() -> None:
    register_torch_ops()
    tensors = {name: torch.from_numpy(one) for name, one in made([3, 2], 5, 2, 1, 8, 2).items()}
    for starts, message in (
        ([1, 3, 5], "query_start_loc begins at 1, not at 0"),
        ([0, 3, 6], "request 1: rows 3 to 6 of query_start_loc are not in a batch of 5"),
        ([0, 4, 2], "request 1: rows 4 to 2"),
    ):
        wrong = tensors | {"query_start_loc": torch.tensor(starts, dtype=torch.int32)}
        with pytest.raises(IndexError, match=message):
            torch.ops.fxhlo.varlen_attention(**wrong, **attributes(8))
