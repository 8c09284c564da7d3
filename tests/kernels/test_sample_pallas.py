"""`fxhlo.sample` in Pallas for TPU and CUDA, in its interpreter on the CPU: the tokens of the reference, bit for bit."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from fxhlo.kernels.sample import KERNEL, cuda, reference, tpu
from fxhlo.kernels.sample.cases import cases, values
from fxhlo.kernels.sample.reference import EPSILON
from fxhlo.kernels.sample.xla_arithmetic import divided, order_of, reciprocal_of
from fxhlo.kernels.spec import Operands, TensorSpec
from fxhlo.passes.hlo.implementation import lower_implementation
from fxhlo.runtime.core.plugins import without_triton
from fxhlo.runtime.core.targets import Target

KINDS = ("normal", "peaked", "ties", "equal", "masked", "broken", "extreme")


def random_logits(rng, kind, shape):
    x = (rng.standard_normal(shape) * rng.choice([0.1, 1, 4, 30])).astype(np.float32)
    if kind == "peaked":
        x[np.arange(len(x)), rng.integers(0, shape[1], len(x))] += 60
    elif kind == "ties":
        x = np.round(x)
    elif kind == "equal":
        x[:] = x[0, 0]
    elif kind == "masked":
        x[rng.random(shape) < 0.9] = -np.inf
    elif kind == "broken":
        x[rng.random(shape) < 0.2] = np.nan
        x[0] = rng.choice([np.nan, -np.inf, np.inf, 0.0])
    elif kind == "extreme":
        x = rng.choice(np.array([0.0, -0.0, 1e-45, -1e-45, 1e-38, 3.4e38, -3.4e38, np.inf, -np.inf, 1], "f4"), shape)
    return x


def operands(rng, logits):
    """Parameters that differ from row to row, each of them off in some."""
    rows, size = logits.shape
    return [
        logits,
        rng.choice(np.array([0.0, 1e-6, EPSILON, 0.01, 0.7, 1.0, 1.3, 100.0, np.inf], "f4"), rows),
        rng.choice(np.array([-1, 0, 1, 2, 5, 40, size - 1, size, 2**31 - 1], "i4"), rows),
        rng.choice(np.array([0.0, 1e-9, 0.1, 0.5, 0.9, 0.99, 1.0 - 2.0**-24, 1.0], "f4"), rows),
        rng.choice(np.array([0.0, 1e-6, 0.05, 0.3, 1.0], "f4"), rows),
        rng.integers(-(2**31), 2**31, (rows, 2)).astype(np.int32),
        rng.integers(0, 2**31, rows).astype(np.int32),
    ]


FORMS = pytest.mark.parametrize("form", [tpu, cuda], ids=["tpu", "cuda"])


@cache
def run(form):
    def interpreted(*arrays):
        with pltpu.force_tpu_interpret_mode(True):  # the plain interpreter, for any kernel
            return form.lower(*arrays)

    return jax.jit(interpreted)


def check(form, arrays, bfloat16=False):
    tensors = [torch.from_numpy(array) for array in arrays]
    if bfloat16:
        tensors[0] = tensors[0].bfloat16()
        arrays = [jnp.asarray(arrays[0], jnp.bfloat16), *arrays[1:]]
    np.testing.assert_array_equal(np.asarray(run(form)(*arrays)), reference.sample(*tensors).numpy())


SHAPES = ((1, 7, False), (3, 2050, False), (11, 4096, False), (10, 2050, True))
"""(rows, vocabulary, bfloat16): a row alone; a vocabulary that ends inside a vector; more rows than a block."""


@FORMS
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(SHAPES), st.sampled_from(KINDS), st.integers(0, 2**32 - 1))
def test_the_kernel_returns_the_tokens_of_the_reference(form, shape, kind, seed):
    rng = np.random.default_rng(seed)
    rows, size, bfloat16 = shape
    check(form, operands(rng, random_logits(rng, kind, (rows, size))), bfloat16)


@pytest.mark.conformance
@FORMS
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([1, 2, 8, 17, 64, 256]),
    st.sampled_from([32000, 32768, 50257, 128256, 151936, 256000]),
    st.sampled_from(KINDS),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_the_kernel_over_real_vocabularies(form, rows, size, kind, bfloat16, seed):
    rng = np.random.default_rng(seed)
    rows = min(rows, 2**22 // size)  # the reference sorts in 64 bits
    check(form, operands(rng, random_logits(rng, kind, (rows, size))), bfloat16)


@FORMS
def test_a_large_vocabulary(form):
    check(form, list(values(9, 151936)(np.random.default_rng(3)).values()))


def test_strict_interpreter():
    """Pallas' TPU interpreter checks bounds, and fills what nobody wrote with NaN."""
    arrays = operands(np.random.default_rng(0), random_logits(np.random.default_rng(1), "normal", (9, 2100)))
    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(out_of_bounds_reads="uninitialized")):
        result = jax.jit(lambda *arrays: tpu.lower(*arrays))(*arrays)
    np.testing.assert_array_equal(np.asarray(result), reference.sample(*map(torch.from_numpy, arrays)).numpy())


def test_division_is_correctly_rounded():
    """Against the CPU's, over all exponents; with the estimate of the reciprocal made wrong by some units as well."""
    rng = np.random.default_rng(0)
    rows, width = 512, 1024
    x = rng.integers(0, 2**32, (rows, width), dtype=np.uint64).astype(np.uint32).view(np.float32)
    x = np.where(np.isnan(x) | (np.abs(x) < 2.0**-126), np.float32(0), x)
    t = np.exp(rng.uniform(np.log(1e-5), np.log(1e30), (rows, 1))).astype(np.float32)
    t[:4, 0] = 1.0, EPSILON, 1.5, np.nextafter(np.float32(2), np.float32(0))
    expected = np.asarray(order_of(reference.scaled(torch.from_numpy(x), torch.from_numpy(t)).numpy()))
    np.testing.assert_array_equal(np.asarray(jax.jit(divided)(x, t)), expected)
    for error in (-4, 4):
        estimate = reciprocal_of(t) * (1 + error * 2.0**-23)
        np.testing.assert_array_equal(np.asarray(jax.jit(divided)(x, t, estimate)), expected)


@pytest.mark.parametrize(
    ("target", "shape", "dtype", "reason"),
    [
        ("tpu-v6e", (64, 256000), np.float32, None),
        ("tpu-7x", (256, 256000), jnp.bfloat16, None),
        ("tpu-v4", (8, 128256), np.float32, None),
        ("tpu-v4", (8, 256000), np.float32, "a block of 256000 tokens takes 25.4 MiB of VMEM, and there are 16"),
        ("tpu-v6e", (8, 2**20), np.float32, "overflow"),
        ("tpu-v6e", (8, 100), np.float16, "float16"),
    ],
)
def test_what_is_supported(target, shape, dtype, reason):
    operands = Operands.of(("logits",), (TensorSpec(shape, np.dtype(dtype)),))
    refusal = tpu.supports(operands, {}, Target(target))
    assert refusal is None if reason is None else reason in refusal


@pytest.mark.skipif(without_triton() is not None, reason="this jaxlib lowers Triton's kernels by its CUDA plugin alone")
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_every_case_is_lowered_for_cuda_without_a_gpu(case):
    (triton,) = (one for one in KERNEL.implementations if one.target == "cuda")
    named = Operands.of(case.operands, case.operands.values())
    assert triton.refusal(named, {}, Target("cuda")) is None
    text = lower_implementation(triton, named, {}, Target("cuda"))
    assert re.findall(r"custom_call @(\S+?)\(", text) == ["__gpu$xla.gpu.triton"]
