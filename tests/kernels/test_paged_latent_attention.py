"""`fxhlo.ragged_paged_latent_attention`: every implementation against the reference, the reference against plain attention."""

from __future__ import annotations

import math

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxhlo.kernels.catalog import kernels, register_torch_ops
from fxhlo.kernels.latent_attention.reference import latent_attention
from fxhlo.kernels.paged_latent_attention import KERNEL
from fxhlo.kernels.paged_latent_attention.reference import ragged_paged_latent_attention as reference
from fxhlo.kernels.spec import Operands, TensorSpec
from fxhlo.runtime.core import native
from fxhlo.runtime.core.targets import Target

CPU = Target("cpu")
HERE = [one for one in KERNEL.implementations if one.target in ("cpu", "any")]
"""What runs on this machine; test_paged_latent_attention_tpu.py has the others."""
here = pytest.mark.parametrize("implementation", HERE, ids=lambda implementation: implementation.name)


def batch(
    lengths: list[tuple[int, int]], *, heads: int, size: int, block_size: int, padding: int, selected: int, seed: int
) -> dict[str, torch.Tensor]:
    """Requests as (tokens before this step, tokens of this step) with pages in shuffled order, and `padding` rows of no request.

    Slots that nobody wrote hold NaN. selected: how many positions a row selects, 0 for no such operand.
    """
    generator = torch.Generator().manual_seed(seed)
    requests, pages = len(lengths) + 2, math.ceil(max(map(sum, lengths)) / block_size) + 1
    blocks = requests * pages + 1
    tables = torch.randperm(blocks, generator=generator)[: requests * pages].reshape(requests, pages).int()
    cache = torch.full((blocks, block_size, size), float("nan"))
    slots, starts, chosen = [], [0], []
    for index, (done, new) in enumerate(lengths):
        for at in range(done + new):
            slot = int(tables[index, at // block_size]) * block_size + at % block_size
            if at < done:
                cache.view(-1, size)[slot] = torch.randn(size, generator=generator)
                continue
            slots.append(slot)
            some = torch.randperm(at + 1, generator=generator)[:selected].sort().values
            chosen.append(torch.cat([some, torch.full((selected - len(some),), -1)]))
        starts.append(starts[-1] + new)
    rows = len(slots) + padding
    made = {
        "query": torch.randn(rows, heads, size, generator=generator),
        "latent": torch.randn(rows, size, generator=generator),
        "kv_cache": cache,
        "slot_mapping": torch.tensor(slots + [-1] * padding, dtype=torch.int32),
        "block_tables": tables,
        "seq_lens": torch.tensor([*map(sum, lengths), 0, 0], dtype=torch.int32),
        "query_start_loc": torch.tensor(starts + [starts[-1]] * 2, dtype=torch.int32),
    }
    nothing = [torch.full((selected,), -1)] * padding
    return made | ({"selected": torch.stack(chosen + nothing).int()} if selected else {})


def run(implementation: object, arrays: dict[str, np.ndarray], **attributes: object) -> tuple[np.ndarray, np.ndarray]:
    specs = Operands.of(arrays, (TensorSpec(array.shape, array.dtype) for array in arrays.values()))
    reason = implementation.refusal(specs, attributes, CPU)
    if reason is not None and reason == native.unavailable():
        pytest.skip(reason)
    assert reason is None
    output, cache = jax.jit(lambda operands: implementation.lower(**operands, **attributes))(arrays)
    return np.asarray(output), np.asarray(cache)


lengths = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 40)), min_size=1, max_size=4)
some_cases = st.fixed_dictionaries(
    {
        "lengths": st.one_of(lengths, st.just([(90, 100), (0, 3), (17, 1)])),
        "heads": st.sampled_from([1, 4, 5, 70]),
        "size": st.sampled_from([(8, 4), (20, 7), (64, 16)]),
        "block_size": st.sampled_from([4, 16]),
        "padding": st.integers(0, 5),
        "masks": st.sampled_from([(0, 0), (1, 0), (7, 0), (0, 1), (0, 5), (0, 200)]),
        "seed": st.integers(0, 2**31),
    }
)


@here
@settings(max_examples=15, deadline=None)
@given(case=some_cases)
def test_implementations_compute_the_reference(implementation: object, case: dict) -> None:
    (value_size, rotary), (window, selected) = case["size"], case["masks"]
    inputs = batch(
        case["lengths"], heads=case["heads"], size=value_size + rotary, block_size=case["block_size"],
        padding=case["padding"], selected=selected, seed=case["seed"],
    )  # fmt: skip
    attributes = {"value_size": value_size, "scale": 0.3, "sliding_window": window}
    expected, cache = reference(**inputs, **attributes)
    output, updated = run(implementation, {name: tensor.numpy() for name, tensor in inputs.items()}, **attributes)
    np.testing.assert_allclose(output, expected.numpy(), rtol=2e-4, atol=2e-5)
    np.testing.assert_array_equal(updated, cache.numpy())


@here
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("selected", [0, 9])
def test_half_precision_at_the_size_of_a_served_model(implementation: object, dtype: str, selected: int) -> None:
    inputs = batch(
        [(130, 1), (5, 1), (60, 20)], heads=16, size=576, block_size=16, padding=5, selected=selected, seed=3
    )
    low = {name: one.to(getattr(torch, dtype)) if one.is_floating_point() else one for name, one in inputs.items()}
    attributes = {"value_size": 512, "scale": 576**-0.5, "sliding_window": 0}
    expected, _ = reference(**low, **attributes)
    arrays = {
        name: one.float().numpy().astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16)
        if one.is_floating_point()
        else one.numpy()
        for name, one in low.items()
    }
    output, _ = run(implementation, arrays, **attributes)
    np.testing.assert_allclose(output.astype(np.float32), expected.float().numpy(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("case", [one for one in KERNEL.cases() if one.values], ids=lambda case: case.name)
@here
def test_the_cases(implementation: object, case: object) -> None:
    arrays = case.values(np.random.default_rng(1))
    tensors = {
        name: torch.from_numpy(array.astype(np.float32)).bfloat16()
        if array.dtype == ml_dtypes.bfloat16
        else torch.from_numpy(array)
        for name, array in arrays.items()
    }
    expected, _ = reference(**tensors, **case.attributes)
    output, _ = run(implementation, arrays, **case.attributes)
    most = float(expected.float().abs().max())
    np.testing.assert_allclose(output.astype(np.float32), expected.float().numpy(), rtol=0, atol=case.tolerance * most)


def test_a_chunked_prompt_gives_bit_for_bit_what_a_whole_one_does() -> None:
    """What the native kernel promises, whatever heads, rows and keys it computes together."""
    (implementation,) = (one for one in HERE if one.name == "native")
    whole = batch([(0, 150)], heads=5, size=24, block_size=16, padding=0, selected=0, seed=8)
    attributes = {"value_size": 16, "scale": 0.2, "sliding_window": 0}
    arrays = {name: tensor.numpy() for name, tensor in whole.items()}
    expected, _ = run(implementation, arrays, **attributes)
    cache, outputs = arrays["kv_cache"], []
    for first, last in ((0, 64), (64, 65), (65, 150)):
        rows = {name: arrays[name][first:last] for name in ("query", "latent", "slot_mapping")}
        lengths = {
            "seq_lens": np.array([last, 0, 0], np.int32),
            "query_start_loc": np.array([0] + [last - first] * 3, np.int32),
        }
        output, cache = run(implementation, arrays | rows | lengths | {"kv_cache": cache}, **attributes)
        outputs.append(output)
    np.testing.assert_array_equal(np.concatenate(outputs), expected)


@pytest.mark.parametrize("selected", [0, 4])
def test_the_reference_is_latent_attention_where_there_is_no_cache(selected: int) -> None:
    inputs = batch([(0, 9)], heads=4, size=12, block_size=4, padding=0, selected=selected, seed=5)
    output, _ = reference(**inputs, value_size=8, scale=0.5)
    alone = latent_attention(
        inputs["query"], inputs["latent"], inputs.get("selected"), layer="", value_size=8, scale=0.5
    )
    torch.testing.assert_close(output, alone)


def test_latent_attention_is_attention_over_decompressed_keys_and_values() -> None:
    """The absorbed form against torch's own attention, by the projections that MLA's paper has."""
    tokens, heads, nope, rope, rank, values = 7, 3, 6, 4, 10, 5
    torch.manual_seed(0)
    q, k_up, v_up = (
        torch.randn(tokens, heads, nope + rope),
        torch.randn(heads, nope, rank),
        torch.randn(heads, rank, values),
    )
    latent, rotary = torch.randn(tokens, rank), torch.randn(tokens, rope)
    keys = torch.cat([torch.einsum("hpl,tl->htp", k_up, latent), rotary.expand(heads, tokens, rope)], -1)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1), keys, torch.einsum("tl,hlv->htv", latent, v_up), is_causal=True, scale=0.4
    )
    absorbed = torch.cat([torch.einsum("thp,hpl->thl", q[..., :nope], k_up), q[..., nope:]], -1)
    attended = latent_attention(absorbed, torch.cat([latent, rotary], -1), layer="", value_size=rank, scale=0.4)
    torch.testing.assert_close(torch.einsum("thl,hlv->htv", attended, v_up), expected)


def test_eager_torch_refuses_a_block_that_the_cache_does_not_have() -> None:
    register_torch_ops()
    inputs = batch([(0, 9)], heads=2, size=12, block_size=4, padding=0, selected=0, seed=5)
    inputs["block_tables"] = inputs["block_tables"] + 100
    with pytest.raises(
        IndexError, match=r"ragged_paged_latent_attention: request 0: entry 0 of its block table is 1\d\d"
    ):
        torch.ops.fxhlo.ragged_paged_latent_attention(*inputs.values(), value_size=8, scale=1.0)


def test_work_counts_a_latent_once() -> None:
    case = next(case for case in KERNEL.cases() if case.name.startswith("decode, 16 heads of 512 + 64 (DeepSeek"))
    operands = Operands.of(case.operands, case.operands.values())
    flops, read = kernels()["fxhlo.ragged_paged_latent_attention"].work(operands, case.attributes)
    context = 128 * 16
    assert flops == pytest.approx(2 * 64 * 16 * (576 + 512) * context, rel=1e-3)
    assert read == pytest.approx(64 * (context + 1) * 576 * 2, rel=1e-3)
