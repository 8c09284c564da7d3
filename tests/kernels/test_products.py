"""grouped_matmul and quantized_matmul: each implementation against the reference, on the CPU."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxhlo.kernels import grouped_matmul, quantized_matmul
from fxhlo.kernels.grouped_matmul.cases import values as groups
from fxhlo.kernels.quantized_matmul import reference
from fxhlo.kernels.quantized_matmul.cases import WEIGHTS
from fxhlo.kernels.quantized_matmul.cases import values as quantized
from fxhlo.kernels.spec import Operands, TensorSpec
from fxhlo.runtime.core.targets import Target

TORCH = {"bfloat16": torch.bfloat16, "float8_e4m3fn": torch.float8_e4m3fn}
INTEGERS = {"bfloat16": np.int16, "float8_e4m3fn": np.int8}


def tensor(array):
    name = array.dtype.name
    if name in TORCH:
        return torch.from_numpy(array.view(INTEGERS[name])).view(TORCH[name])
    return torch.from_numpy(array)


def compare(kernel, operands, attributes, implementation):
    expected = kernel.reference(**{name: tensor(array) for name, array in operands.items()}, **attributes)
    result = jax.jit(lambda operands: implementation.lower(**operands, **attributes))(operands)
    assert str(result.dtype) == str(expected.dtype).removeprefix("torch.")
    tolerance = 1e-2 if result.dtype == jnp.bfloat16 else 1e-5
    np.testing.assert_allclose(
        np.asarray(result, np.float32), expected.float().numpy(), rtol=tolerance, atol=tolerance * 4
    )


@pytest.mark.parametrize(
    "implementation",
    [
        one for one in grouped_matmul.KERNEL.implementations if one.target == "any"
    ],  # test_moe_pallas.py, test_moe_cuda.py
    ids=lambda one: one.name,
)
@settings(max_examples=6, deadline=None)
@given(st.sampled_from([(1, 3), (24, 5), (33, 1)]), st.booleans(), st.integers(0, 2**32 - 1))
def test_grouped_matmul(implementation, shape, bfloat16, seed):
    dtype = np.dtype(ml_dtypes.bfloat16 if bfloat16 else np.float32)
    operands = groups(*shape, 32, 16, dtype)(np.random.default_rng(seed))
    compare(grouped_matmul.KERNEL, dict(operands), {}, implementation)


def test_rows_past_the_last_group_are_zero():
    operands = dict(groups(8, 2, 32, 16, np.dtype(np.float32))(np.random.default_rng(0)))
    operands["sizes"] = np.array([2, 3], np.int32)
    result = grouped_matmul.KERNEL.reference(**{name: tensor(array) for name, array in operands.items()})
    assert (result[5:] == 0).all()
    assert (result[:5] != 0).any(dim=1).all()


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(sorted(WEIGHTS)), st.sampled_from([(1, 2), (5, 64)]), st.booleans(), st.integers(0, 2**32 - 1))
def test_quantized_matmul(weight, shape, bfloat16, seed):
    dtype = np.dtype(ml_dtypes.bfloat16 if bfloat16 else np.float32)
    operands = quantized(*shape, 24, weight, dtype)(np.random.default_rng(seed))
    (implementation,) = quantized_matmul.KERNEL.implementations
    compare(quantized_matmul.KERNEL, dict(operands), {"bits": WEIGHTS[weight][1]}, implementation)


def test_four_bits_are_signed():
    packed = torch.tensor([[0x78, 0x0F]], dtype=torch.uint8).view(torch.int8)  # low 8, 15; high 7, 0
    assert reference.unpacked(packed).tolist() == [[-8, -1, 7, 0]]


def test_what_is_not_supported_has_a_reason():
    def refusal(kernel, specs, **attributes):
        operands = Operands.of(specs, (TensorSpec(shape, np.dtype(dtype)) for shape, dtype in specs.values()))
        return kernel.implementations[0].refusal(operands, attributes, Target("tpu-v6e"))

    values, scale = ((4, 32), np.float32), ((8,), np.float32)
    wrong = {"values": values, "weight": ((8, 16), np.int8), "scale": scale}
    assert refusal(quantized_matmul.KERNEL, wrong, bits=8) == "values have 32 inputs, the weight 16"
    assert refusal(quantized_matmul.KERNEL, wrong, bits=4) is None
    assert "3 bits" in refusal(quantized_matmul.KERNEL, wrong, bits=3)
    assert "int16" in refusal(quantized_matmul.KERNEL, wrong | {"weight": ((8, 32), np.int16)}, bits=8)
    grouped = {"values": values, "weights": ((2, 8, 32), np.float32), "sizes": ((2,), np.int32)}
    assert "float32" in refusal(grouped_matmul.KERNEL, grouped)
