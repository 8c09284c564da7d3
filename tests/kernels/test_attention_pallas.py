"""`fxhlo.attention` by the flash attention of jax's wheel, in Pallas' interpreter on the CPU, against the reference."""

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from jax.experimental.pallas import tpu as pltpu

from fxhlo.kernels.attention import reference, tpu
from fxhlo.kernels.attention.cases import attributes, specs, values
from fxhlo.kernels.spec import Operands, TensorSpec


@pytest.mark.parametrize("shape", [(128, 2, 2, 64), (384, 4, 1, 64), (256, 2, 2, 128)])
def test_the_kernel_gives_the_reference(shape):
    operands = dict(values(*shape)(np.random.default_rng(0)))
    named = attributes(shape[3])
    tensors = {name: torch.from_numpy(one.view(np.int16)).view(torch.bfloat16) for name, one in operands.items()}
    expected = reference.attention(**tensors, sinks=None, alibi_slopes=None, **named).float().numpy()
    with pltpu.force_tpu_interpret_mode(True):
        result = jax.jit(lambda operands: tpu.attention(**operands, **named))(operands)
    assert result.dtype == ml_dtypes.bfloat16
    np.testing.assert_allclose(np.asarray(result, np.float32), expected, rtol=2e-2, atol=2e-2)


def test_what_is_not_supported_has_a_reason():
    def refusal(shape=(256, 4, 2, 64), sinks=False, **changed):
        found = specs(*shape)
        if sinks:
            found["sinks"] = TensorSpec((4,), np.dtype(np.float32))
        return tpu.supports(Operands.of(found, found.values()), attributes(64) | changed)

    assert refusal() is None
    assert "1000 tokens" in refusal((1000, 4, 2, 64))
    assert "head size of 80" in refusal((256, 4, 2, 80))
    assert "sinks" in refusal(sinks=True)
    assert "window" in refusal(sliding_window=64)
