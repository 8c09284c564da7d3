"""`fxhlo.grouped_matmul` and `fxhlo.moe` for CUDA: their numbers in Pallas' interpreter against the references, and what is lowered of them without a GPU."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from jax.experimental.pallas import tpu as pltpu

from fxhlo.kernels.grouped_matmul import KERNEL as GROUPED
from fxhlo.kernels.grouped_matmul.cases import values as groups
from fxhlo.kernels.grouped_matmul.cuda import FEW, MANY, tiles_of
from fxhlo.kernels.moe import KERNEL as MOE
from fxhlo.kernels.moe.cases import OPENAI, SILU, Mixture
from fxhlo.kernels.spec import Case, Kernel, Operands, TensorSpec
from fxhlo.passes.hlo.implementation import lower_implementation
from fxhlo.runtime.core.plugins import without_triton
from fxhlo.runtime.core.targets import Target

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
CUDA = Target("cuda")
lowered = pytest.mark.skipif(without_triton() is not None, reason="this jax lowers no kernel to Triton")


def run(kernel: Kernel, operands: dict[str, np.ndarray], attributes: dict[str, Any]) -> np.ndarray:
    """Compared with the reference."""
    triton = next(one for one in kernel.implementations if one.target == "cuda")
    specs = Operands.of(operands, (TensorSpec(array.shape, array.dtype) for array in operands.values()))
    assert triton.refusal(specs, attributes, CUDA) is None
    tensors = {
        name: torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        if array.dtype == BFLOAT16
        else torch.from_numpy(array)
        for name, array in operands.items()
    }
    expected = kernel.reference(**tensors, **attributes).float()
    with pltpu.force_tpu_interpret_mode(True):  # the plain interpreter, for any kernel
        result = jax.jit(partial(triton.bound(CUDA), **attributes))(**operands)
    assert result.dtype == BFLOAT16
    difference = np.abs(np.asarray(result, np.float32) - expected.numpy())
    assert (difference <= 2.0**-6 * (1 + expected.abs().numpy())).all()
    return np.asarray(result, np.float32)


SIZES = {
    "few rows, some without": [3, 0, 5, 1, 0, 0, 15],
    "several tiles of a group": [0, 0, FEW.rows * 2 + 7, 0, 0, 0, 0, 0, 0],
    "groups that end with a tile": [FEW.rows, FEW.rows, 0, 3],
    "many rows": [MANY.rows + 1, 7, MANY.rows],
    "no group has rows": [0, 0, 0],
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("spare", [9, pytest.param(0, marks=pytest.mark.conformance)])
def test_grouped_matmul(name: str, spare: int) -> None:
    """spare: rows past the last group. Sizes that fill no tile of columns or of the inner dimension."""
    sizes = np.array(SIZES[name], np.int32)
    rows = max(int(sizes.sum()) + spare, 1)
    operands = dict(groups(rows, len(sizes), 200, 72, BFLOAT16)(np.random.default_rng(0))) | {"sizes": sizes}
    assert (run(GROUPED, operands, {})[sizes.sum() :] == 0).all()


@pytest.mark.parametrize("name", SIZES)
def test_every_row_of_a_group_lies_in_one_tile(name: str) -> None:
    sizes = np.array(SIZES[name], np.int32)
    found = np.asarray(tiles_of(sizes, int(sizes.sum()) // 16 + len(sizes), 16))
    rows = sorted((int(group), int(first) + at) for group, first, count in found for at in range(count))
    starts = np.cumsum(sizes) - sizes
    assert rows == [(group, int(start) + at) for group, start in enumerate(starts) for at in range(sizes[group])]


MIXTURES = {
    "gated": (Mixture(5, 3, 64, 40), SILU),
    "biases": (Mixture(8, 2, 64, 48, biases=True), OPENAI),
    "one projection": (Mixture(4, 1, 64, 40, gated=False), SILU | {"activation": "relu2_no_mul"}),
    "weights on the input": (Mixture(4, 1, 64, 40), SILU | {"weight_on_input": True}),
}


@pytest.mark.parametrize("rows", [90, pytest.param(1, marks=pytest.mark.conformance)])
@pytest.mark.parametrize("name", MIXTURES)
def test_moe(name: str, rows: int) -> None:
    mixture, attributes = MIXTURES[name]
    run(MOE, dict(mixture.values(rows, BFLOAT16)(np.random.default_rng(rows))), dict(attributes))


def test_weights_of_experts_that_nobody_chose_are_not_read() -> None:
    operands = dict(Mixture(5, 1, 64, 40).values(20, BFLOAT16)(np.random.default_rng(0)))
    operands["topk_ids"] = np.array([[0], [4]] * 10, np.int32)
    for weight in ("w13", "w2"):
        operands[weight][1:4] = np.nan
    triton = next(one for one in MOE.implementations if one.target == "cuda")
    with pltpu.force_tpu_interpret_mode(True):
        result = jax.jit(partial(triton.bound(CUDA), **SILU))(**operands)
    assert np.isfinite(np.asarray(result, np.float32)).all()


@lowered
@pytest.mark.parametrize(
    ("kernel", "case"),
    [(kernel, case) for kernel in (GROUPED, MOE) for case in kernel.cases()],
    ids=lambda one: one.name,
)
def test_every_case_is_lowered_without_a_gpu(kernel: Kernel, case: Case) -> None:
    triton = next(one for one in kernel.implementations if one.target == "cuda")
    operands = Operands.of(case.operands, case.operands.values())
    assert triton.refusal(operands, case.attributes, CUDA) is None
    text = lower_implementation(triton, operands, case.attributes, CUDA)
    assert re.findall(r"custom_call @(\S+?)\(", text) == ["__gpu$xla.gpu.triton"] * (2 if kernel is MOE else 1)


@lowered
def test_what_is_refused_before_a_compiler_runs() -> None:
    triton = next(one for one in MOE.implementations if one.target == "cuda")
    wide = Mixture(5, 3, 64, 40).specs(8, np.dtype(np.float32))
    assert triton.refusal(Operands.of(wide, wide.values()), SILU, CUDA) == (
        "rows, weights and biases are float32, not all bfloat16 or all float16"
    )
    empty = Mixture(5, 3, 64, 40).specs(0, BFLOAT16)
    assert triton.refusal(Operands.of(empty, empty.values()), SILU, CUDA) == "an operand is empty"
    odd = Mixture(5, 3, 64, 40).specs(8, BFLOAT16)
    refusal = triton.refusal(Operands.of(odd, odd.values()), SILU | {"activation": "softplus"}, CUDA)
    assert refusal == "softplus is no activation of experts"
