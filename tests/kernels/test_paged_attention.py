"""`fxhlo.ragged_paged_attention`: every implementation against the reference, the reference against plain attention."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxhlo.kernels.paged_attention import KERNEL
from fxhlo.kernels.paged_attention.reference import ragged_paged_attention as reference
from fxhlo.kernels.spec import Operands, TensorSpec
from fxhlo.runtime.core import native
from fxhlo.runtime.core.targets import Target

CPU = Target("cpu")

GARBAGE = float("nan")
HERE = [one for one in KERNEL.implementations if one.target in ("cpu", "any")]
"""What runs on this machine; test_paged_attention_tpu.py has the others."""


def batch(
    lengths: list[tuple[int, int]],
    *,
    heads: int,
    kv_heads: int,
    head_size: int,
    block_size: int,
    pages: int,
    padding: int,
    seed: int,
) -> dict[str, torch.Tensor]:
    """Requests as (tokens before this step, tokens of this step) with pages in shuffled order, and `padding` rows of no request."""
    generator = torch.Generator().manual_seed(seed)
    requests = len(lengths) + 2
    blocks = requests * pages + 1
    order = torch.randperm(blocks, generator=generator).int()
    tables = order[: requests * pages].reshape(requests, pages)
    rows = sum(new for _, new in lengths) + padding
    cache = torch.full((blocks, block_size, 2 * kv_heads, head_size), GARBAGE)
    slots, starts = [], [0]
    for index, (done, new) in enumerate(lengths):
        for at in range(done + new):
            slot = int(tables[index, at // block_size]) * block_size + at % block_size
            if at < done:
                cache.view(-1, 2 * kv_heads, head_size)[slot] = torch.randn(
                    2 * kv_heads, head_size, generator=generator
                )
            else:
                slots.append(slot)
        starts.append(starts[-1] + new)
    starts += [starts[-1]] * 2
    return {
        "query": torch.randn(rows, heads, head_size, generator=generator),
        "key": torch.randn(rows, kv_heads, head_size, generator=generator),
        "value": torch.randn(rows, kv_heads, head_size, generator=generator),
        "kv_cache": cache,
        "slot_mapping": torch.tensor(slots + [-1] * padding, dtype=torch.int32),
        "block_tables": tables,
        "seq_lens": torch.tensor([done + new for done, new in lengths] + [0, 0], dtype=torch.int32),
        "query_start_loc": torch.tensor(starts, dtype=torch.int32),
    }


def run(implementation: object, inputs: dict[str, torch.Tensor], **attributes: object) -> tuple[np.ndarray, np.ndarray]:
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    specs = Operands.of(arrays, (TensorSpec(array.shape, array.dtype) for array in arrays.values()))
    reason = implementation.refusal(specs, attributes, CPU)
    if reason is not None and reason == native.unavailable():
        pytest.skip(reason)
    assert reason is None
    output, cache = jax.jit(lambda operands: implementation.lower(**operands, **attributes))(arrays)
    return np.asarray(output), np.asarray(cache)


lengths = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 40)), min_size=1, max_size=4)
cases = st.fixed_dictionaries(
    {
        "lengths": st.one_of(lengths, st.just([(90, 100), (0, 3), (17, 1)])),
        "groups": st.sampled_from([(4, 2), (3, 3), (6, 1)]),
        "head_size": st.sampled_from([8, 20, 64]),
        "block_size": st.sampled_from([4, 16]),
        "padding": st.integers(0, 5),
        "sliding_window": st.sampled_from([0, 1, 7]),
        "chunk": st.sampled_from([0, 0, 1, 9, 64]),
        "soft_cap": st.sampled_from([0.0, 3.0]),
        "extras": st.sampled_from([(), ("sinks",), ("alibi_slopes",), ("sinks", "alibi_slopes")]),
        "seed": st.integers(0, 2**31),
    }
)


@pytest.mark.parametrize("implementation", HERE, ids=lambda implementation: implementation.name)
@settings(max_examples=6, deadline=None)
@given(case=cases)
def test_implementations_compute_the_reference(implementation: object, case: dict) -> None:
    heads, kv_heads = case["groups"]
    longest = max(done + new for done, new in case["lengths"])
    inputs = batch(
        case["lengths"], heads=heads, kv_heads=kv_heads, head_size=case["head_size"], block_size=case["block_size"],
        pages=math.ceil(longest / case["block_size"]) + 1, padding=case["padding"], seed=case["seed"],
    )  # fmt: skip
    generator = torch.Generator().manual_seed(case["seed"])
    inputs |= {name: torch.randn(heads, generator=generator) for name in case["extras"]}
    attributes = {"scale": 0.3, **{name: case[name] for name in ("sliding_window", "soft_cap", "chunk")}}
    expected, cache = reference(**{"sinks": None, "alibi_slopes": None, **inputs}, **attributes)
    output, updated = run(implementation, inputs, **attributes)
    np.testing.assert_allclose(output, expected.numpy(), rtol=2e-4, atol=1e-4)  # ALiBi: scores of hundreds
    np.testing.assert_array_equal(updated, cache.numpy())


@pytest.mark.parametrize("implementation", HERE, ids=lambda implementation: implementation.name)
def test_bfloat16_and_a_decode_step(implementation: object) -> None:
    inputs = batch(
        [(30, 1), (5, 1), (0, 1)], heads=6, kv_heads=2, head_size=64, block_size=16, pages=3, padding=5, seed=3
    )
    import ml_dtypes

    low = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
    expected, _ = reference(**low, sinks=None, alibi_slopes=None, scale=0.125, sliding_window=0, soft_cap=0.0)
    arrays = {
        name: tensor.float().numpy().astype(ml_dtypes.bfloat16) if tensor.dtype is torch.bfloat16 else tensor.numpy()
        for name, tensor in low.items()
    }
    specs = Operands.of(arrays, (TensorSpec(array.shape, array.dtype) for array in arrays.values()))
    if implementation.refusal(specs, {}, CPU) is not None:
        pytest.skip("not supported here")
    output, _ = jax.jit(lambda operands: implementation.lower(**operands, scale=0.125, sliding_window=0, soft_cap=0.0))(
        arrays
    )
    np.testing.assert_allclose(np.asarray(output).astype(np.float32), expected.float().numpy(), rtol=2e-2, atol=2e-2)


def test_the_reference_is_attention_where_there_is_no_cache() -> None:
    inputs = batch([(0, 9)], heads=4, kv_heads=2, head_size=8, block_size=4, pages=3, padding=0, seed=5)
    output, _ = reference(**inputs, sinks=None, alibi_slopes=None, scale=0.5, sliding_window=0, soft_cap=0.0)
    q, k, v = (inputs[name].transpose(0, 1)[None] for name in ("query", "key", "value"))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5, enable_gqa=True)
    torch.testing.assert_close(output, expected[0].transpose(0, 1), rtol=1e-5, atol=1e-5)


def test_what_no_implementation_takes_is_said_with_a_reason() -> None:
    specs = (TensorSpec((4, 5, 8), np.dtype(np.float32)),) * 3 + (TensorSpec((2, 4, 4, 8), np.dtype(np.float32)),)
    reasons = [
        implementation.refusal(specs, {}, CPU)
        for implementation in KERNEL.implementations
        if implementation.target == "any"
    ]
    assert reasons == ["5 query heads are no multiple of 2 KV heads"]
