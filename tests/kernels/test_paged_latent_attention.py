"""`fxhlo.ragged_paged_latent_attention`: every implementation against the reference, the reference against plain attention."""

from __future__ import annotations

from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_batches import batch

from fxhlo.kernels.catalog import kernels, register_torch_ops
from fxhlo.kernels.latent_attention.reference import latent_attention
from fxhlo.kernels.paged_latent_attention import KERNEL, cpu
from fxhlo.kernels.paged_latent_attention.cases import MODELS, Sizes
from fxhlo.kernels.paged_latent_attention.reference import ragged_paged_latent_attention as reference
from fxhlo.kernels.spec import Operands, TensorSpec
from fxhlo.runtime.core import native
from fxhlo.runtime.core.targets import Target

CPU = Target("cpu")
SMALL = Sizes(heads=4, nope=6, rotary=4, latent=8, value=5)
HERE = [one for one in KERNEL.implementations if one.target in ("cpu", "any")]
"""What runs on this machine; test_paged_latent_attention_tpu.py has the others."""
here = pytest.mark.parametrize("implementation", HERE, ids=lambda implementation: implementation.name)


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
        "rest": st.sampled_from([(6, 4, 8, 5), (13, 7, 20, 9), (30, 16, 64, 70), (70, 3, 5, 64)]),
        "block_size": st.sampled_from([4, 16]),
        "padding": st.integers(0, 5),
        "masks": st.sampled_from([(0, 0), (1, 0), (7, 0), (0, 1), (0, 5), (0, 200)]),
        "seed": st.integers(0, 2**31),
    }
)


@here
@settings(max_examples=5, deadline=None)
@given(case=some_cases)
def test_implementations_compute_the_reference(implementation: object, case: dict) -> None:
    window, selected = case["masks"]
    inputs = batch(
        case["lengths"], sizes=Sizes(case["heads"], *case["rest"]), block_size=case["block_size"],
        padding=case["padding"], selected=selected, seed=case["seed"],
    )  # fmt: skip
    attributes = {"scale": 0.3, "sliding_window": window}
    expected, cache = reference(**inputs, **attributes)
    output, updated = run(implementation, {name: tensor.numpy() for name, tensor in inputs.items()}, **attributes)
    np.testing.assert_allclose(output, expected.numpy(), rtol=2e-4, atol=2e-5)
    np.testing.assert_array_equal(updated, cache.numpy())


@here
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("selected", [0, 9])
def test_half_precision_at_the_size_of_a_served_model(implementation: object, dtype: str, selected: int) -> None:
    inputs = batch(
        [(130, 1), (5, 1), (60, 20), (0, 70)], sizes=MODELS["DeepSeek-V2-Lite"], block_size=16, padding=5,
        selected=selected, seed=3,
    )  # fmt: skip
    low = {name: one.to(getattr(torch, dtype)) if one.is_floating_point() else one for name, one in inputs.items()}
    attributes = {"scale": 192**-0.5, "sliding_window": 0}
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


@pytest.mark.parametrize("form", ["absorbed", "decompressed"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_chunked_prompt_gives_bit_for_bit_what_a_whole_one_does(form: str, dtype: Any) -> None:
    """What the native kernel promises for one form, whatever heads, rows and keys it computes together."""
    reason = native.unavailable()
    if reason is not None:
        pytest.skip(reason)
    whole = batch([(0, 150)], sizes=Sizes(5, 10, 8, 16, 12), block_size=16, padding=0, selected=0, seed=8)
    arrays = {
        name: one.numpy().astype(dtype) if one.is_floating_point() else one.numpy() for name, one in whole.items()
    }
    call = jax.jit(lambda operands: cpu.lower(**operands, scale=0.2, form=form))
    expected, _ = call(arrays)
    cache, outputs = arrays["kv_cache"], []
    for first, last in ((0, 64), (64, 65), (65, 150)):
        rows = {name: arrays[name][first:last] for name in ("query", "latent", "slot_mapping")}
        lengths = {
            "seq_lens": np.array([last, 0, 0], np.int32),
            "query_start_loc": np.array([0] + [last - first] * 3, np.int32),
        }
        output, cache = call(arrays | rows | lengths | {"kv_cache": cache})
        outputs.append(output)
    np.testing.assert_array_equal(np.concatenate(outputs), expected)


@pytest.mark.parametrize("form", ["absorbed", "decompressed", "cheaper"])
@pytest.mark.parametrize("window", [0, 70])
def test_each_form_of_the_native_kernel_computes_the_reference(form: str, window: int) -> None:
    """More rows and keys than are projected together, and more heads than fit one group of scratch."""
    reason = native.unavailable()
    if reason is not None:
        pytest.skip(reason)
    lengths = [(300, 1), (0, 400), (129, 90), (500, 2), (0, 1)]
    inputs = batch(lengths, sizes=Sizes(24, 65, 7, 40, 33), block_size=16, padding=9, selected=0, seed=2)
    expected, cache = reference(**inputs, scale=0.3, sliding_window=window)
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    output, updated = jax.jit(lambda given: cpu.lower(**given, scale=0.3, sliding_window=window, form=form))(arrays)
    np.testing.assert_allclose(output, expected.numpy(), rtol=2e-4, atol=2e-5)
    np.testing.assert_array_equal(updated, cache.numpy())


@pytest.mark.parametrize("selected", [0, 4])
def test_the_reference_is_latent_attention_where_there_is_no_cache(selected: int) -> None:
    inputs = batch([(0, 9)], sizes=SMALL, block_size=4, padding=0, selected=selected, seed=5)
    output, _ = reference(**inputs, scale=0.5)
    rows = [inputs[name] for name in ("query", "latent", "w_uk", "w_uv")]
    alone = latent_attention(*rows, inputs.get("selected"), layer="", scale=0.5)
    torch.testing.assert_close(output, alone)


def test_latent_attention_is_attention_over_decompressed_keys_and_values() -> None:
    """The reference against torch's own attention over the keys and values that MLA's paper has."""
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
    attended = latent_attention(q, torch.cat([latent, rotary], -1), k_up, v_up, layer="", scale=0.4)
    torch.testing.assert_close(attended.transpose(0, 1), expected)


def test_eager_torch_refuses_a_block_that_the_cache_does_not_have() -> None:
    register_torch_ops()
    inputs = batch([(0, 9)], sizes=SMALL, block_size=4, padding=0, selected=0, seed=5)
    inputs["block_tables"] = inputs["block_tables"] + 100
    with pytest.raises(
        IndexError, match=r"ragged_paged_latent_attention: request 0: entry 0 of its block table is 1\d\d"
    ):
        torch.ops.fxhlo.ragged_paged_latent_attention(*inputs.values(), scale=1.0)


def test_work_counts_a_latent_once() -> None:
    case = next(case for case in KERNEL.cases() if case.name.startswith("decode, 16 heads of 512 + 64 (DeepSeek"))
    operands = Operands.of(case.operands, case.operands.values())
    flops, read = kernels()["fxhlo.ragged_paged_latent_attention"].work(operands, case.attributes)
    context, projections = 128 * 16, 16 * 512 * (128 + 128)
    assert flops == pytest.approx(2 * 64 * (16 * (576 + 512) * context + projections), rel=1e-3)
    assert read == pytest.approx(64 * (context + 1) * 576 * 2 + 2 * projections, rel=1e-3)
