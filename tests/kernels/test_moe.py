"""`fxhlo.moe`: each implementation against the reference, and the reference against a loop over rows."""

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxhlo.kernels.moe import KERNEL
from fxhlo.kernels.moe.cases import OPENAI, SILU, Mixture
from fxhlo.kernels.moe.reference import GATED, PLAIN, activated
from fxhlo.kernels.spec import Operands, TensorSpec
from fxhlo.runtime.core.targets import Target

BFLOAT16, FLOAT32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
CPU = Target("cpu")
FIXED = {
    "swigluoai": OPENAI,
    "swiglustep": {"limit": 0.5},
    "situ": {"alpha": 1.5, "beta": 0.75},
}


def tensor(array):
    return (
        torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        if array.dtype == BFLOAT16
        else torch.from_numpy(array)
    )


def tensors(operands):
    return {name: tensor(array) for name, array in operands.items()}


def one_by_one(x, w13, w2, topk_weights, topk_ids, w13_bias=None, w2_bias=None, *, weight_on_input, **fixed):
    """What the docstring says, a row and an expert at a time."""
    result = torch.zeros(x.shape)
    for row in range(x.shape[0]):
        for weight, expert in zip(topk_weights[row], topk_ids[row].tolist(), strict=True):
            if not 0 <= expert < w13.shape[0]:
                continue
            hidden = w13[expert] @ (x[row] * weight if weight_on_input else x[row])
            hidden = hidden if w13_bias is None else hidden + w13_bias[expert]
            one = w2[expert] @ activated(hidden, **fixed)
            one = one if w2_bias is None else one + w2_bias[expert]
            result[row] += one if weight_on_input else one * weight
    return result


def implementations():
    return [one for one in KERNEL.implementations if one.target in ("any", "cpu")]


def compare(operands, attributes, implementation, expected=None):
    specs = Operands.of(operands, (TensorSpec(array.shape, array.dtype) for array in operands.values()))
    reason = implementation.refusal(specs, attributes, CPU)
    if reason is not None:
        pytest.skip(reason)
    expected = KERNEL.reference(**tensors(operands), **attributes) if expected is None else expected
    result = jax.jit(lambda operands: implementation.bound(CPU)(**operands, **attributes))(operands)
    assert result.dtype == operands["x"].dtype and result.shape == operands["x"].shape
    tolerance = 1e-2 if result.dtype == BFLOAT16 else 1e-5
    np.testing.assert_allclose(
        np.asarray(result, np.float32), expected.float().numpy(), rtol=tolerance, atol=tolerance * 4
    )


@pytest.mark.parametrize("activation", [*GATED, *PLAIN])
@pytest.mark.parametrize("biases", [False, True])
def test_the_reference_is_what_its_docstring_says(activation, biases):
    operands = tensors(Mixture(5, 2, 16, 12, activation in GATED, biases).values(7, FLOAT32)(np.random.default_rng(0)))
    attributes = SILU | FIXED.get(activation, {}) | {"activation": activation}
    torch.testing.assert_close(KERNEL.reference(**operands, **attributes), one_by_one(**operands, **attributes))


@pytest.mark.parametrize("implementation", implementations(), ids=lambda one: one.name)
@pytest.mark.parametrize("activation", [*GATED, *PLAIN])
@settings(max_examples=3, deadline=None)
@given(
    st.sampled_from([(1, 1, 1), (3, 4, 2), (40, 3, 3), (70, 20, 1)]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_an_implementation_gives_the_reference(implementation, activation, shape, bfloat16, biases, on_input, seed):
    rows, experts, top = shape
    mixture = Mixture(experts, top, 24, 16, activation in GATED, biases)
    operands = dict(mixture.values(rows, BFLOAT16 if bfloat16 else FLOAT32)(np.random.default_rng(seed)))
    attributes = SILU | FIXED.get(activation, {}) | {"activation": activation, "weight_on_input": on_input}
    compare(operands, attributes, implementation)


@pytest.mark.parametrize("implementation", implementations(), ids=lambda one: one.name)
@pytest.mark.parametrize("chosen", ["all rows one expert", "an expert nobody chooses", "nobody", "no rows"])
def test_a_lopsided_choice(implementation, chosen):
    rows = 0 if chosen == "no rows" else 37
    operands = dict(Mixture(4, 2, 24, 16, biases=True).values(max(rows, 1), FLOAT32)(np.random.default_rng(1)))
    operands = {
        name: array[:rows] if name in ("x", "topk_weights", "topk_ids") else array for name, array in operands.items()
    }
    if chosen == "all rows one expert":
        operands["topk_ids"] = np.tile(np.array([2, -1], np.int32), (rows, 1))
    elif chosen == "an expert nobody chooses":
        operands["topk_ids"] = np.tile(np.array([3, 1], np.int32), (rows, 1))
        operands["w13"][[0, 2]] = np.nan  # it is not read, or what it gives is dropped
    elif chosen == "nobody":
        operands["topk_ids"][:] = -1
    compare(operands, OPENAI, implementation, one_by_one(**tensors(operands), **OPENAI))
    if chosen == "nobody":
        assert not KERNEL.reference(**tensors(operands), **OPENAI).any()


def test_an_unknown_activation_is_refused():
    operands = Mixture(4, 2, 24, 16).values(3, FLOAT32)(np.random.default_rng(1))
    specs = Operands.of(operands, (TensorSpec(array.shape, array.dtype) for array in operands.values()))
    wrong = SILU | {"activation": "softplus"}
    assert [one.refusal(specs, wrong, CPU) for one in implementations()][-1] == "softplus is no activation of experts"
    with pytest.raises(ValueError, match="softplus is no activation of experts: silu"):
        KERNEL.reference(**tensors(operands), **wrong)


def test_the_least_work_reads_only_experts_that_rows_can_choose():
    specs = Mixture(64, 8, 32, 16).specs(2, FLOAT32)
    flops, moved = KERNEL.work(Operands.of(specs, specs.values()), SILU)
    assert flops == 2 * 2 * 8 * 3 * 32 * 16
    assert moved == 16 * 3 * 32 * 16 * 4 + 2 * 2 * 32 * 4 + 2 * 8 * 8
