"""`fxhlo.ragged_paged_latent_attention` for CUDA: its numbers in Pallas' interpreter against the reference, what it refuses, and what is lowered of it
without a GPU."""

from __future__ import annotations

import re

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from latent_batches import batch

from fxhlo.kernels.paged_latent_attention import KERNEL
from fxhlo.kernels.paged_latent_attention.cases import MODELS, Sizes, cases, specs
from fxhlo.kernels.paged_latent_attention.cuda_tiles import shared_bytes, tiles_for
from fxhlo.kernels.paged_latent_attention.reference import ragged_paged_latent_attention as reference
from fxhlo.kernels.spec import Case, Operands, TensorSpec
from fxhlo.passes.hlo.implementation import lower_implementation
from fxhlo.runtime.core.plugins import without_triton
from fxhlo.runtime.core.targets import Target

TRITON = next(one for one in KERNEL.implementations if one.target == "cuda")
CUDA = Target("cuda")
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
lowered = pytest.mark.skipif(without_triton() is not None, reason="this jax lowers no kernel to Triton")


def refusal(operands: dict[str, TensorSpec], target: str = "cuda") -> str | None:
    named = {"scale": 0.1, "sliding_window": 0}
    return TRITON.refusal(Operands.of(operands, operands.values()), named, Target(target))


@pytest.mark.parametrize(
    ("lengths", "sizes", "dtype", "page", "window", "form"),
    [
        ([(40, 1), (0, 1), (511, 1), (300, 1)], Sizes(5, 24, 32, 128, 20), "bfloat16", 16, 0, (1, True)),
        ([(100, 1), (0, 13), (130, 9), (0, 1)], Sizes(5, 24, 32, 128, 20), "float32", 16, 0, (4, False)),
        ([(100, 1), (0, 13), (130, 9), (0, 1)], Sizes(3, 16, 16, 96, 16), "float32", 64, 20, (8, True)),
        ([(40, 1), (0, 6), (520, 1)], Sizes(40, 8, 16, 256, 8), "bfloat16", 32, 0, (1, True)),
        ([(0, 1)], Sizes(2, 8, 16, 32, 8), "float32", 8, 0, (1, False)),
    ],
    ids=["decode", "rows of requests", "window", "heads of several programs", "nobody"],
)
def test_numbers_of_the_reference(
    lengths: list[tuple[int, int]], sizes: Sizes, dtype: str, page: int, window: int, form: tuple[int, bool]
) -> None:
    """Unwritten slots and rows of no request hold NaN. form: (rows of a tile, whether programs share its keys)."""
    padding = 3
    inputs = batch(lengths, sizes=sizes, block_size=page, padding=padding, selected=0, seed=len(lengths))
    rows = inputs["query"].shape[0] - padding
    for name in ("query", "latent"):
        inputs[name][rows:] = float("nan")
    if dtype == "bfloat16":
        inputs = {name: one.bfloat16() if one.is_floating_point() else one for name, one in inputs.items()}
    numpy_dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    arrays = {
        name: one.float().numpy().astype(numpy_dtype) if one.is_floating_point() else one.numpy()
        for name, one in inputs.items()
    }
    operands = {name: TensorSpec(one.shape, one.dtype) for name, one in arrays.items()}
    assert refusal(operands) is None
    tiles = tiles_for(operands["query"], operands["kv_cache"], sizes.latent, *arrays["block_tables"].shape)
    assert tiles is not None
    assert (tiles.rows, tiles.splits > 1) == form
    named = {"scale": 0.1, "sliding_window": window}
    with pltpu.force_tpu_interpret_mode(True):  # the plain interpreter, for any kernel
        output, updated = jax.jit(lambda given: TRITON.bound(CUDA)(**given, **named))(arrays)
    expected, cache = reference(**inputs, **named)
    wanted = expected.float().numpy()
    scale = float(np.abs(wanted).max())
    np.testing.assert_allclose(np.asarray(output, np.float32), wanted, rtol=0, atol=TOLERANCE[dtype] * scale)
    np.testing.assert_array_equal(np.asarray(updated, np.float32), cache.float().numpy())


@lowered
def test_what_is_refused_before_a_compiler_runs() -> None:
    lite = MODELS["DeepSeek-V2-Lite"]
    assert refusal(specs(64, lite, 16, 64, 128)) is None
    assert refusal(specs(64, lite, 24, 8, 128)) is None  # any page
    mixed = specs(64, lite, 16, 64, 128) | {"kv_cache": specs(64, lite, 16, 64, 128, dtype="float32")["kv_cache"]}
    assert [
        refusal(specs(64, lite, 16, 64, 128, selected=8)), refusal(specs(65, lite, 16, 8, 128)), refusal(mixed),
        refusal(specs(64, lite._replace(rotary=8), 16, 64, 128)),
        refusal(specs(64, lite._replace(latent=1024), 16, 64, 128, dtype="float32")),
    ] == [
        "it has selected positions",
        "65 rows of 8 requests take fewer operations in the decompressed form",
        "query, latent, projections and cache are bfloat16, float32, not all bfloat16, all float16 or all float32",
        "a latent of 512 and 8 rotary numbers is not within 1024 and 256, or below 16",
        "rows of 1024 + 64 float32 do not fit the shared memory of cuda",
    ]  # fmt: skip
    assert refusal(specs(64, lite._replace(latent=1024), 16, 64, 128, dtype="float32"), "cuda-h100") is None


@pytest.mark.parametrize(
    ("shape", "known"),
    [
        ((16, 512, 64, 2, 32), 56_320), ((64, 512, 64, 2, 32), 147_456), ((32, 256, 32, 2, 64), 59_392),
        ((16, 512, 64, 4, 16), 74_816), ((64, 512, 64, 4, 16), 188_672),
    ],
    ids=str,
)  # fmt: skip
def test_shared_memory_is_not_below_what_the_compiler_takes(shape: tuple[int, ...], known: int) -> None:
    """XLA's figures for an H100, of jaxlib 0.10.2's plugin: rows of scores, latent, rotary, bytes a number, keys of a step."""
    scores, latent, rotary, size, keys = shape
    assert known <= shared_bytes(scores, keys, (latent + rotary) * size) <= known * 1.25


def test_where_shared_memory_is_short_programs_take_fewer_rows_and_heads() -> None:
    lite = specs(48, MODELS["DeepSeek-V2-Lite"], 16, 6, 10, dtype="float32")
    made = [tiles_for(lite["query"], lite["kv_cache"], 512, 6, 10, shared * 1024) for shared in (227, 163, 99, 48)]
    assert [one and (one.rows, one.group) for one in made] == [(4, 16), (2, 16), (1, 16), None]


@lowered
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_every_case_is_lowered_without_a_gpu(case: Case) -> None:
    operands = Operands.of(case.operands, case.operands.values())
    if case.name.startswith("prefill") or "selected" in operands.named:
        assert refusal(dict(case.operands)) is not None
        return
    text = lower_implementation(TRITON, operands, case.attributes, CUDA)
    calls = [line for line in text.splitlines() if "custom_call" in line]
    assert [re.findall(r', name = "(\w+)"', call) for call in calls] == [
        ["fxhlo_paged_attention_write"], ["fxhlo_paged_attention"]
    ]  # fmt: skip
    assert ["operand_index = 2" in call for call in calls] == [True, False]
