"""`fxhlo.moe` and `fxhlo.grouped_matmul` in Pallas, in its interpreter on the CPU; what they refuse before a compiler runs."""

import re
from functools import partial

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from jax.experimental.pallas import tpu as pltpu

import fxhlo.jax
from fxhlo.kernels import grouped_matmul, moe
from fxhlo.kernels.grouped_matmul.cases import values as groups
from fxhlo.kernels.grouped_matmul.tuning import ROWS, tiles_for
from fxhlo.kernels.moe.cases import MODELS, OPENAI, SILU, Mixture
from fxhlo.kernels.spec import Operands, TensorSpec
from fxhlo.passes.hlo.legalize import legalize
from fxhlo.passes.mlir import context, parse
from fxhlo.runtime.core.targets import KNOWN, Target

BFLOAT16, FLOAT32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
TARGET = Target("tpu-v6e")
TPUS = [name for name in KNOWN if name.startswith("tpu-")]


def implementation(kernel):
    (found,) = (one for one in kernel.implementations if one.name == "pallas")
    return found


def tensor(array):
    return (
        torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        if array.dtype == BFLOAT16
        else torch.from_numpy(array)
    )


def compare(kernel, operands, attributes, mode=True):
    specs = Operands.of(operands, (TensorSpec(array.shape, array.dtype) for array in operands.values()))
    assert implementation(kernel).refusal(specs, attributes, TARGET) is None
    expected = kernel.reference(**{name: tensor(array) for name, array in operands.items()}, **attributes)
    with pltpu.force_tpu_interpret_mode(mode):
        result = jax.jit(partial(implementation(kernel).bound(TARGET), **attributes))(**operands)
    assert result.dtype == operands[next(iter(operands))].dtype
    difference = np.abs(np.asarray(result, np.float32) - expected.float().numpy())
    assert (difference <= 2.0**-6 * (1 + expected.float().abs().numpy())).all()
    return np.asarray(result, np.float32)


SIZES = {
    "groups that share a tile": [3, 0, 5, 1, 0, 0, 15],
    "one group of several tiles": [0, 0, ROWS * 2 + 7, 0],
    "the first group alone": [9, 0, 0],
    "the last group alone": [0, 0, 9],
    "groups that end with a tile": [ROWS, ROWS, 0, 3],
    "no group": [0, 0, 0],
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("spare", [1, *(pytest.param(more, marks=pytest.mark.conformance) for more in (0, ROWS + 3))])
def test_grouped_matmul(name, spare):
    """spare: rows past the last group. What the interpreter reads outside an array is NaN."""
    sizes = np.array(SIZES[name], np.int32)
    rows = max(int(sizes.sum()) + spare, 1)
    operands = dict(groups(rows, len(sizes), 40, 200, BFLOAT16)(np.random.default_rng(0))) | {"sizes": sizes}
    strict = pltpu.InterpretParams(out_of_bounds_reads="uninitialized", uninitialized_memory="nan")
    result = compare(grouped_matmul.KERNEL, operands, {}, strict)
    assert (result[sizes.sum() :] == 0).all()


MIXTURES = {
    "gated": (Mixture(5, 3, 64, 40), SILU),
    "biases": (Mixture(8, 2, 64, 48, biases=True), OPENAI),
    "one projection": (Mixture(4, 1, 64, 40, gated=False), SILU | {"activation": "relu2_no_mul"}),
    "weights on the input": (Mixture(4, 1, 64, 40), SILU | {"weight_on_input": True}),
}


@pytest.mark.parametrize("rows", [24, *(pytest.param(more, marks=pytest.mark.conformance) for more in (1, 200))])
@pytest.mark.parametrize("name", MIXTURES)
def test_moe(name, rows):
    mixture, attributes = MIXTURES[name]
    compare(moe.KERNEL, dict(mixture.values(rows, BFLOAT16)(np.random.default_rng(rows))), attributes)


@pytest.mark.parametrize("ids", [[[3]] * 20, [[0], [4]] * 10, [[-1], [5]] * 10], ids=("one expert", "two", "nobody"))
def test_experts_that_nobody_chose(ids):
    operands = dict(Mixture(5, 1, 64, 40).values(20, BFLOAT16)(np.random.default_rng(0)))
    operands["topk_ids"] = np.array(ids, np.int32)
    unused = np.setdiff1d(np.arange(5), operands["topk_ids"])
    result = compare(moe.KERNEL, operands, SILU)
    for weight in ("w13", "w2"):
        operands[weight][unused] = np.nan
    with pltpu.force_tpu_interpret_mode(True):
        again = jax.jit(partial(implementation(moe.KERNEL).bound(TARGET), **SILU))(**operands)
    np.testing.assert_array_equal(np.asarray(again, np.float32), result)


@pytest.mark.parametrize("target", TPUS)
@pytest.mark.parametrize("name", MODELS)
def test_the_tiles_of_served_models_fit(name, target):
    mixture, where = MODELS[name][0], Target(target)
    for tokens in (1, 8, 512, 8192):
        for inputs, outputs in ((mixture.hidden, 2 * mixture.inner), (mixture.inner, mixture.hidden)):
            tiles = tiles_for(tokens * mixture.top, mixture.experts, inputs, outputs, where)
            assert not isinstance(tiles, str), tiles
            assert tiles.vmem <= where.vmem
            assert tiles.columns % 128 == 0 or tiles.columns == outputs


def test_what_is_refused_before_a_compiler_runs():
    def refusal(kernel, specs, attributes, target=TARGET):
        return implementation(kernel).refusal(Operands.of(specs, specs.values()), attributes, target)

    def product(rows, groups, inputs, outputs, dtype=BFLOAT16):
        return {
            "values": TensorSpec((rows, inputs), dtype),
            "weights": TensorSpec((groups, outputs, inputs), dtype),
            "sizes": TensorSpec((groups,), np.dtype(np.int32)),
        }

    grouped = grouped_matmul.KERNEL
    assert refusal(grouped, product(8, 4, 64, 64), {}) is None
    assert refusal(grouped, product(8, 4, 64, 64, FLOAT32), {}) == "operands are float32 and float32, not bfloat16"
    assert refusal(grouped, product(0, 4, 64, 64), {}) == "an operand is empty"
    assert "MiB of tables, and there are 1 of SMEM" in refusal(grouped, product(8, 100_000, 64, 64), {})
    assert "MiB of VMEM, and there are 16" in refusal(grouped, product(256, 8, 20_000, 4096), {}, Target("tpu-v4"))
    assert refusal(moe.KERNEL, Mixture(4, 2, 64, 48).specs(8, FLOAT32), SILU).endswith("are float32, not bfloat16")
    assert refusal(moe.KERNEL, Mixture(4, 2, 64, 0).specs(8, BFLOAT16), SILU) == "an operand is empty"
    wide = Mixture(4, 2, 30_000, 64).specs(512, BFLOAT16)
    assert "MiB of VMEM" in refusal(moe.KERNEL, wide, SILU, Target("tpu-v4"))
    assert "swish" in refusal(moe.KERNEL, Mixture(4, 2, 64, 48).specs(8, BFLOAT16), SILU | {"activation": "swish"})


def test_the_layout_of_weights_is_pinned():
    """XLA would lay [3, 200, 72] out with 200, which fills more of a tile, innermost, and copy it around the kernel."""
    specs = (((8, 72), BFLOAT16), ((3, 200, 72), BFLOAT16), ((3,), np.dtype(np.int32)))
    module = fxhlo.jax.lower(fxhlo.jax.grouped_matmul, *(np.zeros(shape, dtype) for shape, dtype in specs))
    legalized = legalize(module.bytecode, "tpu-v6e")
    (decision,) = legalized.decisions
    assert decision.implementation == "pallas"
    parsed = parse(legalized.bytecode, context())
    (arguments,) = re.findall(r"@main\((.*?)\) ->", str(parsed))
    pinned = re.findall(r'tensor<([^>]*)> \{[^}]*mhlo.layout_mode = "([^"]*)"', arguments)
    assert pinned == [("3x200x72xbf16", "{2,1,0}")]
