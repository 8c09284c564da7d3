"""`fxhlo.logprobs` in Pallas, in its interpreter on the CPU: ids and ranks of the reference, values but for rounding."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from fxhlo.kernels.logprobs import reference, tpu
from fxhlo.kernels.logprobs.cases import values
from fxhlo.kernels.spec import Operands, TensorSpec
from fxhlo.runtime.core.targets import Target


@partial(jax.jit, static_argnames="count")
def run(logits, tokens, enabled, mask, count):
    with pltpu.force_tpu_interpret_mode(True):
        return tpu.lower(logits, tokens, enabled, mask, count=count)


def check(logits, tokens, count, enabled=1, bfloat16=False, mask=None):
    tensor, enabled = torch.from_numpy(logits), np.int32(enabled)
    if bfloat16:
        tensor, logits = tensor.bfloat16(), jnp.asarray(logits, jnp.bfloat16)
    masks = () if mask is None else (torch.from_numpy(mask),)
    expected = reference.logprobs(tensor, torch.from_numpy(tokens), torch.tensor(enabled), *masks, count=count)
    ids, numbers, rank = run(logits, tokens, enabled, mask, count=count)
    np.testing.assert_array_equal(np.asarray(ids), expected[0].numpy())
    np.testing.assert_allclose(np.asarray(numbers), expected[1].numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(rank), expected[2].numpy())


KINDS = ("normal", "ties", "equal", "masked", "broken")
SHAPES = ((1, 21, 21, False), (3, 2050, 0, False), (11, 4096, 20, False), (9, 2100, 5, True))
"""(rows, vocabulary, count, bfloat16)"""


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(SHAPES), st.sampled_from(KINDS), st.integers(0, 2**32 - 1))
def test_the_kernel_gives_the_tokens_of_the_reference(shape, kind, seed):
    rows, size, count, bfloat16 = shape
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((rows, size)) * rng.choice([0.1, 1, 8])).astype(np.float32)
    if kind == "ties":
        x = np.round(x)
    elif kind == "equal":
        x[:] = x[0, 0]
    elif kind == "masked":
        x[rng.random(x.shape) < 0.99] = -np.inf
    elif kind == "broken":
        x[rng.random(x.shape) < 0.1] = rng.choice(np.array([np.nan, np.inf, -np.inf, -0.0, 1e-40], np.float32))
    check(x, rng.integers(0, size, rows).astype(np.int32), count, bfloat16=bfloat16)


def test_nothing_where_no_request_asks():
    check(np.ones((3, 2050), np.float32), np.zeros(3, np.int32), 0, enabled=0)


@pytest.mark.parametrize("enabled", [0, 1])
def test_what_a_grammar_forbids_counts_as_impossible(enabled):
    rng = np.random.default_rng(7)
    mask = rng.integers(-(2**31), 2**31, (3, 65), np.int32)
    check(rng.standard_normal((3, 2050)).astype(np.float32), np.array([0, 7, 2049], np.int32), 5, enabled, mask=mask)


def test_a_large_vocabulary():
    made = values(2, 128256)(np.random.default_rng(0))
    check(made["logits"], made["tokens"], 20)


@pytest.mark.parametrize(
    ("target", "shape", "dtype", "count", "reason"),
    [
        ("tpu-v6e", (256, 256000), np.float32, 20, None),
        ("tpu-v4", (64, 128256), jnp.bfloat16, 20, None),
        ("tpu-v4", (64, 256000), np.float32, 20, "MiB of VMEM, and there are 16"),
        ("tpu-v6e", (64, 1000), np.float16, 20, "float16"),
        ("tpu-v6e", (64, 1000), np.float32, 128, "128 lanes"),
        ("tpu-v6e", (64, 10), np.float32, 20, "20 tokens asked of a vocabulary of 10"),
    ],
)
def test_what_is_supported(target, shape, dtype, count, reason):
    operands = Operands.of(("logits",), (TensorSpec(shape, np.dtype(dtype)),))
    refusal = tpu.supports(operands, {"count": count}, Target(target))
    assert refusal is None if reason is None else reason in refusal
