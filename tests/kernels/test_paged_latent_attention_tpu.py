"""`fxhlo.ragged_paged_latent_attention` in Pallas: its numbers in the interpreter against the reference, what it refuses, and the
cache updated where it lies."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from latent_batches import batch

from fxhlo.kernels.paged_latent_attention import KERNEL, tpu, tuning
from fxhlo.kernels.paged_latent_attention.cases import MODELS, Sizes, specs
from fxhlo.kernels.paged_latent_attention.reference import ragged_paged_latent_attention as reference
from fxhlo.kernels.paged_latent_attention.tuning import NEVER, blocks_for, least_rows, prompt_blocks_for
from fxhlo.kernels.spec import Operands, TensorSpec
from fxhlo.runtime.core.targets import KNOWN, Target
from fxhlo.tools.bench.tpu_kernels.compiler import compile_implementation

(PALLAS,) = (one for one in KERNEL.implementations if one.name == "pallas")
TPUS = [name for name in KNOWN if name.startswith("tpu-")]
V6E = Target("tpu-v6e")
Lengths = list[tuple[int, int]]
STEPS: dict[str, Lengths] = {
    "decode": [(40, 1), (0, 1), (511, 1), (600, 1)],
    "mixed": [(100, 1), (0, 37), (530, 9), (0, 1)],
    "one prompt": [(3, 40)],
    "nobody": [(0, 1)],
}
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


def refusal(operands: dict[str, TensorSpec], target: str = "tpu-v6e", **attributes: Any) -> str | None:
    return PALLAS.refusal(Operands.of(operands, operands.values()), {"scale": 0.1} | attributes, Target.parse(target))


def check(
    lengths: Lengths, sizes: Sizes, *, dtype: str = "float32", page: int = 16, window: int = 0, padding: int = 3, mode: Any = True,
    form: str = "",
) -> None:  # fmt: skip
    """Unwritten slots and rows of no request hold NaN. form: of the kernel, its own choice where it is empty."""
    inputs = batch(lengths, sizes=sizes, block_size=page, padding=padding, selected=0, seed=len(lengths))
    rows = inputs["query"].shape[0] - padding
    for name in ("query", "latent"):
        inputs[name][rows:] = float("nan")
    if dtype == "bfloat16":
        inputs = {name: one.bfloat16() if one.is_floating_point() else one for name, one in inputs.items()}
    arrays = {
        name: one.float().numpy().astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
        if one.is_floating_point()
        else one.numpy()
        for name, one in inputs.items()
    }
    named = {"scale": 0.1, "sliding_window": window}
    assert refusal({name: TensorSpec(one.shape, one.dtype) for name, one in arrays.items()}, **named) is None
    with pltpu.force_tpu_interpret_mode(mode):
        output, updated = jax.jit(lambda given: tpu.lower(**given, **named, target=V6E, form=form))(arrays)
    expected, cache = reference(**inputs, **named)
    wanted = expected.float().numpy()
    scale = float(np.abs(wanted).max())
    np.testing.assert_allclose(np.asarray(output, np.float32), wanted, rtol=0, atol=TOLERANCE[dtype] * scale)
    np.testing.assert_array_equal(np.asarray(updated, np.float32), cache.float().numpy())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("mixed", "bfloat16"),
        pytest.param("mixed", "float32", marks=pytest.mark.conformance),
        pytest.param("decode", "bfloat16", marks=pytest.mark.conformance),
        pytest.param("one prompt", "float32", marks=pytest.mark.conformance),
        pytest.param("nobody", "float32", marks=pytest.mark.conformance),
    ],
)
def test_numbers_of_the_reference(name: str, dtype: str) -> None:
    check(STEPS[name], Sizes(5, 24, 32, 128, 20), dtype=dtype)


def test_a_window_and_longer_pages() -> None:
    check(STEPS["mixed"], Sizes(3, 16, 16, 128, 16), window=20, page=64)


def test_more_heads_on_a_latent_of_512() -> None:
    check([(40, 1), (0, 6), (520, 1)], Sizes(20, 32, 64, 512, 32), dtype="bfloat16", padding=0, page=32)


@pytest.mark.parametrize(
    ("lengths", "sizes", "changes"),
    [
        pytest.param(STEPS["mixed"], Sizes(4, 24, 32, 128, 20), {}, marks=pytest.mark.conformance),
        (STEPS["mixed"], Sizes(2, 192, 64, 128, 256), {"dtype": "bfloat16"}),
        ([(600, 300), (0, 1), (3, 290)], Sizes(2, 16, 16, 128, 16), {"page": 64}),
        pytest.param([(600, 300), (0, 70)], Sizes(2, 16, 16, 128, 16), {"window": 20}, marks=pytest.mark.conformance),
        (STEPS["nobody"], Sizes(2, 16, 16, 128, 16), {}),
    ],
)
def test_keys_and_values_made_of_latents(lengths: Lengths, sizes: Sizes, changes: dict[str, Any]) -> None:
    check(lengths, sizes, form="decompressed", **changes)


@pytest.fixture
def from_eight_rows_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tuning, "least_rows", lambda *_: 8)
    prompt_blocks_for.cache_clear()
    yield
    prompt_blocks_for.cache_clear()


@pytest.mark.parametrize(
    "name", ["mixed", *(pytest.param(name, marks=pytest.mark.conformance) for name in ("decode", "one prompt"))]
)
def test_each_request_in_the_form_of_its_length(name: str, from_eight_rows_on: None) -> None:
    check(STEPS[name], Sizes(2, 16, 16, 128, 16))


def test_rows_from_which_on_keys_and_values_are_made() -> None:
    """By the squares of the matrix units: of 128 by 128, DeepSeek's sizes save 768 products a row and key, and take 131,072 a key."""
    sizes = MODELS["DeepSeek-V2, V3"]
    named = (sizes.nope + sizes.rotary, sizes.nope, sizes.latent, sizes.value, sizes.latent + sizes.rotary)
    assert least_rows(*named, Target("tpu-v5e")) == -(-131_072 // 768)
    assert least_rows(160, 128, 128, 128, 160, Target("tpu-v6e")) == NEVER


def test_copies_are_awaited_before_what_they_bring_is_read(capfd: pytest.CaptureFixture[str]) -> None:
    """The strict interpreter runs a copy when it is awaited, fills memory that nobody wrote with NaN, and tells races."""
    strict = pltpu.InterpretParams(dma_execution_mode="on_wait", out_of_bounds_reads="raise", detect_races=True)
    check([(500, 1), (490, 2)], Sizes(2, 8, 16, 128, 8), page=64, mode=strict)
    assert "race" not in capfd.readouterr().out.lower()


def test_what_is_refused_before_a_compiler_runs() -> None:
    lite = MODELS["DeepSeek-V2-Lite"]
    assert refusal(specs(64, lite, 16, 64, 128)) is None
    assert refusal(specs(64, lite, 16, 64, 128, selected=8)) == "it has selected positions"
    assert refusal(specs(64, lite._replace(latent=500), 16, 64, 128)) == "a latent of 500 is no multiple of 128"
    assert "pages of 8 tokens are not one of" in str(refusal(specs(64, lite, 8, 64, 128)))
    assert "block tables of" in str(refusal(specs(64, lite, 16, 256, 2048)))
    mixed = specs(64, lite, 16, 64, 128) | {"kv_cache": specs(64, lite, 16, 64, 128, dtype="float32")["kv_cache"]}
    assert "bfloat16, float32, not all" in str(refusal(mixed))
    huge = specs(64, lite._replace(heads=16384), 16, 64, 128)
    assert "16384 heads on a latent of 576 do not fit the vector memory" in str(refusal(huge))


@pytest.mark.parametrize("target", TPUS)
@pytest.mark.parametrize("model", MODELS)
def test_every_served_size_fits(model: str, target: str) -> None:
    for tokens, requests in ((64, 64), (1024, 8), (1, 1)):
        operands = specs(tokens, MODELS[model], 16, requests, 128)
        blocks = blocks_for(operands["query"], operands["kv_cache"], MODELS[model].latent, 128, Target(target))
        assert blocks is not None
        assert blocks.keys % blocks.chunk == 0
        assert blocks.vmem <= 0.8 * Target(target).vmem


@pytest.mark.parametrize("tokens", [pytest.param(32, marks=pytest.mark.conformance), 512])
def test_the_cache_is_updated_where_it_lies(tokens: int) -> None:
    """Compiled with a cache that is donated, nothing of its size is made; with 512 rows, where a prompt may take the other form."""
    operands = specs(tokens, MODELS["DeepSeek-V2-Lite"], 16, 8, 32, blocks=8192)
    cache, named = operands["kv_cache"], {"scale": 0.1, "sliding_window": 0}
    done = compile_implementation(PALLAS, operands, named, Target("tpu-v5e"), {1: "kv_cache"})
    size = math.prod(cache.shape) * cache.dtype.itemsize
    assert done.memory.aliased >= size
    assert done.memory.temporaries < size / 4
    shapes = {",".join(map(str, shape)) for shape in (cache.shape, (cache.shape[0] * cache.shape[1], cache.shape[2]))}
    for shape in shapes:
        makers = set(re.findall(rf"= \w+\[{shape}\]\S* ([\w-]+)\(", done.text))
        assert makers <= {
            "parameter",
            "custom-call",
            "get-tuple-element",
            "bitcast",
            "fusion",
            "scatter",
            "dynamic-update-slice",
        }, makers
