"""A decoder written in JAX goes the way of a torch model: legalization, bundle, runtime; and gives the same numbers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
import twin_decoder as decoder

import fxhlo
import fxhlo.jax
from fxhlo.kernels.catalog import kernels
from fxhlo.lowering.bundling import save
from fxhlo.lowering.errors import CaptureError
from fxhlo.runtime.core.errors import ShapeError, UnsupportedError

PROMPTS = [[(5 * at * at + 3) % 61 for at in range(20)], [9, 2], [(7 * at + 6) % 61 for at in range(15)]]
"""More than a page, a few tokens, and a page that is full after the first decode step."""
STEPS = 4


def zeros() -> list[np.ndarray]:
    return [np.zeros(decoder.CACHE, np.float32) for _ in range(decoder.LAYERS)]


def lowered_in_jax(params: Any, inputs: dict[str, np.ndarray], target: str = "cpu") -> Any:
    return fxhlo.jax.lower(
        decoder.step, params, zeros(), *inputs.values(), weights=("params",), states=("caches",), target=target
    )


def served(executables: dict[int, Any], states: list[Any]) -> tuple[list[list[int]], list[np.ndarray], list[Any]]:
    """Tokens and logits of some steps: a prefill of prompts of several lengths, then a token a request.

    executables: by the number of tokens of a step; each takes the caches, then the inputs, and gives tokens, logits and caches.
    """
    batch, logits = decoder.Batch(PROMPTS), []
    for _ in range(STEPS):
        inputs = batch.inputs()
        executable = executables[len(inputs["token_ids"])]
        given = iter(states)
        outputs = executable(
            *[next(given) if one.name.startswith("caches") else inputs[one.name] for one in executable.arguments]
        )
        states = [outputs[one.alias] for one in executable.signature.arguments if one.alias is not None]
        own = [out for out, one in zip(outputs, executable.signature.results, strict=True) if one.alias is None]
        batch.take(np.asarray(own[0]))
        logits.append(np.asarray(own[1]))
    return batch.tokens, logits, states


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return decoder.weights()


@pytest.fixture(scope="module")
def steps() -> dict[int, dict[str, np.ndarray]]:
    """Inputs of a prefill and of a decode step, by their number of tokens."""
    batch = decoder.Batch(PROMPTS)
    prefill = batch.inputs()
    batch.take(np.zeros(len(PROMPTS)))
    decode = batch.inputs()
    return {len(inputs["token_ids"]): inputs for inputs in (prefill, decode)}


@pytest.fixture(scope="module")
def from_torch(params: Any, steps: Any) -> tuple[list[list[int]], list[np.ndarray], list[Any]]:
    """The same decoder in torch, lowered by fxhlo."""
    model = decoder.Decoder(params)
    executables = {}
    for count, inputs in steps.items():
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        caches = [torch.zeros(decoder.CACHE) for _ in range(decoder.LAYERS)]
        executables[count] = fxhlo.lower(model, (caches, *tensors.values())).compile()
    return served(executables, zeros())


def test_same_numbers_through_a_bundle(params: Any, steps: Any, from_torch: Any, tmp_path: Path) -> None:
    save(tmp_path / "bundle", {f"step_{count}": lowered_in_jax(params, inputs) for count, inputs in steps.items()})
    bundle = fxhlo.load(tmp_path / "bundle", "cpu")
    tokens, logits, caches = served({count: bundle[f"step_{count}"] for count in steps}, zeros())
    expected_tokens, expected_logits, expected_caches = from_torch
    assert tokens == expected_tokens
    for ours, theirs in zip([*logits, *caches], [*expected_logits, *expected_caches], strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=2e-5, atol=2e-6)


def test_prompts_beside_decoding_in_one_call(params: Any, from_torch: Any) -> None:
    """A request that decodes, one that ends its prompt in this call and one that is in the middle of it; then as usual."""
    model, batch = decoder.Decoder(params), decoder.Batch(PROMPTS)
    caches, theirs = zeros(), [torch.zeros(decoder.CACHE) for _ in range(decoder.LAYERS)]
    for most in ((64, 1, 8), (64, 64, 3), (64, 64, 64), (64, 64, 64)):
        inputs = batch.inputs(most)
        executable = lowered_in_jax(params, inputs).compile()
        tokens, logits, *caches = executable(*caches, *inputs.values())
        with torch.no_grad():
            _, expected = model(theirs, *(torch.from_numpy(array) for array in inputs.values()))
        np.testing.assert_allclose(np.asarray(logits), expected.numpy(), rtol=2e-5, atol=2e-6)
        for mine, its in zip(caches, theirs, strict=True):
            np.testing.assert_allclose(np.asarray(mine), its.numpy(), rtol=2e-5, atol=2e-6)
        batch.take(np.asarray(tokens))
    for mine, whole in zip(batch.tokens, from_torch[0], strict=True):
        assert mine == whole[: len(mine)]


LOADED = """
import sys
sys.modules.update(torch=None, vllm=None)  # importing one raises
import numpy as np
import fxhlo
step = fxhlo.load("bundle", "cpu")["step"]
given = np.load("given.npz")
outputs = step(*(given[one.name] for one in step.arguments))
np.savez("made.npz", *map(np.asarray, outputs))
"""


def test_the_bundle_runs_where_there_is_no_torch(params: Any, steps: Any, tmp_path: Path) -> None:
    hlo = lowered_in_jax(params, steps[3])
    save(tmp_path / "bundle", {"step": hlo})
    caches = {f"caches.{index}": cache for index, cache in enumerate(zeros())}
    np.savez(tmp_path / "given.npz", **caches, **steps[3])
    subprocess.run([sys.executable, "-P", "-c", LOADED], check=True, cwd=tmp_path)
    made, expected = np.load(tmp_path / "made.npz"), hlo.compile()(*caches.values(), *steps[3].values())
    for mine, its in zip(made.values(), expected, strict=True):
        np.testing.assert_array_equal(mine, np.asarray(its))


def test_same_numbers_in_plain_jax(params: Any, from_torch: Any) -> None:
    """Without fxhlo's runtime: `jax.jit` runs the composites' references, the caches are donated."""
    step = jax.jit(decoder.step, donate_argnums=1)
    batch, caches, seen = decoder.Batch(PROMPTS), [jax.numpy.asarray(cache) for cache in zeros()], []
    for _ in range(STEPS):
        given = caches
        tokens, logits, caches = step(params, given, **batch.inputs())
        assert all(cache.is_deleted() for cache in given)
        batch.take(np.asarray(tokens))
        seen.append(np.asarray(logits))
    assert batch.tokens == from_torch[0]
    for ours, theirs in zip(seen, from_torch[1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)


def test_signature_and_kernels(params: Any, steps: Any) -> None:
    hlo = lowered_in_jax(params, steps[3])
    arguments = {one.name: one for one in hlo.signature.arguments}
    assert arguments["params.layers.1.qkv"].kind == "weight"
    assert [one.name for one in hlo.signature.states] == ["caches.0", "caches.1"]
    assert hlo.signature.results[arguments["caches.1"].alias].name == "caches.1.updated"
    assert all(arguments[name].kind == "input" for name in steps[3])
    found = {decision.kernel: decision.count for decision in hlo.legalized().decisions}
    assert found == {"fxhlo.ragged_paged_attention": decoder.LAYERS, "fxhlo.sample": 1, "fxhlo.select_rows": 1}
    assert chosen(hlo)["fxhlo.ragged_paged_attention"] == "native"


def chosen(hlo: Any) -> dict[str, str | None]:
    """The implementation of each composite."""
    return {decision.kernel: decision.implementation for decision in hlo.legalized().decisions}


def test_weights_without_values_are_shapes_alone(params: Any, steps: Any, tmp_path: Path) -> None:
    shapes = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), params)
    hlo = lowered_in_jax(shapes, steps[3])
    assert hlo.bytecode == lowered_in_jax(params, steps[3]).bytecode
    assert not hlo.arrays()


def test_legalized_for_a_tpu(params: Any, steps: Any) -> None:
    """The same module takes the TPU's kernels where they support the shapes, and says why not where they do not."""
    module, on_tpu = (lowered_in_jax(params, steps[3], target) for target in ("cpu", "tpu-v6e"))
    assert on_tpu.bytecode == module.bytecode
    legalized = on_tpu.legalized()
    for decision in legalized.decisions:
        assert decision.implementation == "pallas" or decision.reasons, decision
    assert chosen(on_tpu)["fxhlo.ragged_paged_attention"] == "pallas"
    assert legalized.custom_calls == ("tpu_custom_call",)


@pytest.mark.conformance
def test_compiles_for_a_tpu(params: Any, steps: Any) -> None:
    from fxhlo.runtime.core import pjrt

    legalized = lowered_in_jax(params, steps[3], "tpu-v6e").legalized()
    assert pjrt.compile_ahead(legalized.bytecode, "tpu-v6e").serialize()


def test_a_kernel_that_one_target_runs_is_refused() -> None:
    def step(x: Any) -> Any:
        return jax.ffi.ffi_call("somewhere", jax.ShapeDtypeStruct(x.shape, x.dtype))(x)

    with pytest.raises(UnsupportedError, match=r"custom calls \(somewhere\)"):
        fxhlo.jax.lower(step, np.ones(3, np.float32))


def test_a_state_that_does_not_come_back_is_refused() -> None:
    cache = np.zeros((2, 3), np.float32)
    with pytest.raises(CaptureError, match="the state cache goes in as"):
        fxhlo.jax.lower(lambda cache, x: (x, cache[:1]), cache, cache, states=("cache",))
    with pytest.raises(CaptureError, match="no parameter"):
        fxhlo.jax.lower(lambda cache: cache, cache, weights=("params",))


def test_what_the_schema_does_not_take() -> None:
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(TypeError, match="misses rows"):
        fxhlo.jax.select_rows(x)
    with pytest.raises(TypeError, match="takes no scale"):
        fxhlo.jax.select_rows(x, np.zeros(1, np.int32), scale=1.0)
    with pytest.raises(AttributeError, match="its kernels: "):
        _ = fxhlo.jax.softmax


def test_dtypes_that_a_kernel_does_not_take() -> None:
    hidden, rows = np.zeros((4, 32), np.float32), np.zeros(2, np.float32)
    with pytest.raises(ShapeError, match=r"select_rows: rows is float32, not int32\n  next: .*rows.astype\('int32'\)"):
        fxhlo.jax.select_rows(hidden, rows)
    with pytest.raises(ShapeError, match="silu_and_mul: values is int32, not bfloat16 or float16 or float32"):
        jax.jit(fxhlo.jax.silu_and_mul)(hidden.astype(np.int32))  # traced as well
    inputs = decoder.Batch(PROMPTS).inputs()
    query = np.zeros((37, decoder.HEADS, decoder.HEAD_SIZE), np.float32)
    new = query[:, : decoder.KV_HEADS]
    rest = {name: inputs[name] for name in ("slot_mapping", "block_tables", "seq_lens", "query_start_loc")}
    for name in rest:
        wrong = {**rest, name: rest[name].astype(np.float32)}
        with pytest.raises(ShapeError, match=f"{name} is float32, not int32"):
            fxhlo.jax.ragged_paged_attention(query, new, new, zeros()[0], **wrong, **decoder.ATTENTION)
    with pytest.raises(ShapeError, match="kv_cache is int32, not"):
        fxhlo.jax.ragged_paged_attention(query, new, new, zeros()[0].astype(np.int32), **rest, **decoder.ATTENTION)


def test_each_kernel_says_which_dtypes_it_takes() -> None:
    for name, kernel in kernels().items():
        operands = set(re.findall(r"Tensor\?? (\w+)", kernel.schema))
        assert set(kernel.dtypes) <= operands, name
        for operand, dtypes in kernel.dtypes.items():
            assert all(np.dtype(getattr(ml_dtypes, dtype, dtype)).name == dtype for dtype in dtypes), (name, operand)
        missing = {f"{name}: {operand}" for operand in operands - set(kernel.dtypes)}
        assert missing <= {"fxhlo.random_bits: like", "fxhlo.select_rows: values"}


def test_dtypes_that_jax_would_narrow_are_refused() -> None:
    with pytest.raises(CaptureError, match="x is float64, and JAX would make it float32"):
        fxhlo.jax.lower(lambda x: x + 1, np.zeros(3))
    with pytest.raises(CaptureError, match=r"params\.w is int64, and JAX would make it int32"):
        fxhlo.jax.lower(lambda params: params["w"], {"w": np.zeros(3, np.int64)}, weights=("params",))
    with pytest.raises(CaptureError, match="x is key<fry>, which is no array of numbers"):
        fxhlo.jax.lower(lambda x: jax.random.bits(x), jax.random.key(0))
    assert fxhlo.jax.lower(lambda x, n: x * n, np.zeros(3, np.float32), 3).signature.arguments[1].dtype == "int32"


def test_importing_it_imports_neither_torch_nor_jax() -> None:
    code = "import sys, fxhlo.jax; assert not {'torch', 'jax', 'numpy'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
