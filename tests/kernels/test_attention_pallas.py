"""`fxhlo.attention` against its reference: the flash attention of jax's wheel in Pallas' interpreter on the CPU, and the plain form."""

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from fxhlo.kernels.attention import reference, tpu, xla
from fxhlo.kernels.attention.cases import attributes, specs, values
from fxhlo.kernels.spec import Operands, TensorSpec


def expected(operands, **named):
    tensors = {name: torch.from_numpy(np.asarray(one, np.float32)).bfloat16() for name, one in operands.items()}
    absent = dict.fromkeys({"sinks", "alibi_slopes"} - set(operands))
    return reference.attention(**tensors, **absent, **named).float().numpy()


@pytest.mark.parametrize(
    "shape", [(128, 2, 2, 64), (384, 4, 1, 64), (256, 2, 2, 128), (600, 2, 1, 80), (1100, 1, 1, 64)]
)
@pytest.mark.parametrize("causal", [True, False])
def test_the_kernel_gives_the_reference(shape, causal):
    operands, named = dict(values(*shape)(np.random.default_rng(0))), attributes(shape[3], causal=causal)
    assert tpu.supports(Operands.of(operands, specs(*shape).values()), named) is None
    with pltpu.force_tpu_interpret_mode(True):
        result = jax.jit(lambda operands: tpu.lower(**operands, **named))(operands)
    assert result.dtype == ml_dtypes.bfloat16
    np.testing.assert_allclose(np.asarray(result, np.float32), expected(operands, **named), rtol=2e-2, atol=2e-2)


@settings(max_examples=8, deadline=None)
@given(
    tokens=st.sampled_from([128, 256, 515]), keys=st.sampled_from([128, 384, 520, 577]), size=st.sampled_from([16, 64, 72, 128, 160]),
    kv_heads=st.integers(1, 2), group=st.integers(1, 3), loud=st.booleans(),
)  # fmt: skip
def test_one_sequence_looks_at_another(tokens, keys, size, kv_heads, group, loud):
    """Any sizes that the kernel takes; loud: scores of hundreds, so that a key of the padding would win or lose it all."""
    shape = (tokens, kv_heads * group, kv_heads, size, keys)
    operands, named = dict(values(*shape)(np.random.default_rng(tokens + keys))), attributes(size, causal=False)
    if loud:
        operands["key"] = (operands["key"] * 40 - 20).astype(ml_dtypes.bfloat16)
    assert tpu.supports(Operands.of(operands, specs(*shape).values()), named) is None
    with pltpu.force_tpu_interpret_mode(True):
        result = jax.jit(lambda operands: tpu.lower(**operands, **named))(operands)
    np.testing.assert_allclose(np.asarray(result, np.float32), expected(operands, **named), rtol=2e-2, atol=3e-2)


@settings(max_examples=12, deadline=None)
@given(
    tokens=st.integers(1, 9), keys=st.integers(1, 9), kv_heads=st.integers(1, 3), group=st.integers(1, 3), causal=st.booleans(),
    window=st.integers(0, 4), soft_cap=st.sampled_from([0.0, 5.0]), sinks=st.booleans(), slopes=st.booleans(),
)  # fmt: skip
def test_the_plain_form_gives_the_reference(tokens, keys, kv_heads, group, causal, window, soft_cap, sinks, slopes):
    rng, heads = np.random.default_rng(tokens * 10 + keys), kv_heads * group
    operands = dict(values(tokens, heads, kv_heads, 8, tokens if causal else keys)(rng))
    optional = {"sinks": sinks, "alibi_slopes": slopes}
    operands |= {name: rng.random(heads).astype(np.float32) for name, there in optional.items() if there}
    named = attributes(8, causal=causal) | {"sliding_window": window, "soft_cap": soft_cap}
    result = np.asarray(jax.jit(lambda operands: xla.lower(**operands, **named))(operands), np.float32)
    np.testing.assert_allclose(result, expected(operands, **named), rtol=1e-2, atol=1e-2)


def test_rows_that_see_nothing_are_zero():
    """Five rows and a window of two on one key: rows 2 to 4 are too far from it."""
    operands = dict(values(5, 2, 1, 8, 1)(np.random.default_rng(0)))
    named = attributes(8, causal=False) | {"sliding_window": 2}
    result = np.asarray(xla.lower(**operands, **named), np.float32)
    np.testing.assert_allclose(result, expected(operands, **named), rtol=1e-2)
    assert result[:2].any()
    assert not result[2:].any()


def test_torch_says_the_same():
    """torch's own scaled_dot_product_attention, which knows nothing of windows and sinks."""
    operands = dict(values(7, 4, 2, 16, 9)(np.random.default_rng(0)))
    q, k, v = (torch.from_numpy(np.asarray(one, np.float32)).transpose(0, 1) for one in operands.values())
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(0, 1)
    np.testing.assert_allclose(expected(operands, **attributes(16, causal=False)), theirs.numpy(), rtol=1e-2, atol=1e-2)


def test_what_is_not_supported_has_a_reason():
    def refusal(shape=(256, 4, 2, 64), sinks=False, **changed):
        found = specs(*shape)
        if sinks:
            found["sinks"] = TensorSpec((4,), np.dtype(np.float32))
        return tpu.supports(Operands.of(found, found.values()), attributes(64) | changed)

    assert refusal() is None
    assert refusal(causal=False) is None
    assert refusal((256, 4, 2, 64, 512), causal=False) is None
    assert "causal attention of 256 tokens on 512 keys" in refusal((256, 4, 2, 64, 512))
    assert "200 tokens are no multiple of 128" in refusal((200, 4, 2, 64))
    assert "head size of 81" in refusal((256, 4, 2, 81))
    assert "no multiple of 3 KV heads" in refusal((256, 4, 3, 64))
    assert "sinks" in refusal(sinks=True)
    assert "window" in refusal(sliding_window=64)
