"""`fxhlo.process_logits` in Pallas, in its interpreter on the CPU: the numbers of the reference, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from fxhlo.kernels.process_logits import reference, tpu
from fxhlo.kernels.process_logits.cases import values
from fxhlo.kernels.spec import Operands, TensorSpec
from fxhlo.runtime.core.targets import Target


@jax.jit
def run(operands):
    with pltpu.force_tpu_interpret_mode(True):
        return tpu.lower(**operands)


def check(operands, bfloat16=False):
    tensors = {name: torch.from_numpy(array) for name, array in operands.items()}
    if bfloat16:
        tensors["logits"] = tensors["logits"].bfloat16()
        operands = operands | {"logits": jnp.asarray(operands["logits"], jnp.bfloat16)}
    expected = reference.process_logits(**tensors).numpy()
    np.testing.assert_array_equal(np.asarray(run(operands)).view(np.int32), expected.view(np.int32))


SHAPES = ((1, 70, 3, 20, False), (11, 4200, 1030, 1100, False), (8, 5000, 6, 40, True))
"""(rows, vocabulary, biases, tokens seen, bfloat16): lists of more than a part; rows that fill no block."""


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(SHAPES), st.tuples(*[st.booleans()] * 3), st.integers(0, 2**32 - 1))
def test_the_kernel_gives_the_numbers_of_the_reference(shape, flags, seed):
    rows, size, biases, seen, bfloat16 = shape
    operands = values(rows, size, biases, seen)(np.random.default_rng(seed))
    check(dict(operands) | {"flags": np.array(flags, np.int32)}, bfloat16)


@pytest.mark.parametrize("size", [128256, pytest.param(256000, marks=pytest.mark.conformance)])
def test_a_large_vocabulary(size):
    check(dict(values(4, size, 1024, 2048)(np.random.default_rng(size))))


def test_strict_interpreter():
    """Pallas' TPU interpreter checks bounds and copies."""
    operands = values(8, 4200, 6, 40)(np.random.default_rng(0))
    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(out_of_bounds_reads="uninitialized")):
        result = jax.jit(lambda operands: tpu.lower(**operands))(dict(operands))
    expected = reference.process_logits(**{name: torch.from_numpy(array) for name, array in operands.items()})
    np.testing.assert_array_equal(np.asarray(result), expected.numpy())


@pytest.mark.parametrize(
    ("target", "shape", "dtype", "reason"),
    [
        ("tpu-v6e", (256, 256000), np.float32, None),
        ("tpu-v4", (64, 128256), jnp.bfloat16, None),
        ("tpu-v4", (64, 256000), np.float32, "MiB of VMEM, and there are 16"),
        ("tpu-v6e", (64, 1000), np.float16, "float16"),
    ],
)
def test_what_is_supported(target, shape, dtype, reason):
    operands = Operands.of(("logits",), (TensorSpec(shape, np.dtype(dtype)),))
    refusal = tpu.supports(operands, {}, Target(target))
    assert refusal is None if reason is None else reason in refusal
