"""`fxhlo.ragged_paged_attention` in Pallas: its numbers in the interpreter against the reference, what it refuses, and what
libtpu makes of it for every generation: the cache updated where it lies, and no copy of it."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from attention_batches import batch, check, lengths_of
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from fxhlo.kernels.paged_attention import KERNEL, tuning
from fxhlo.kernels.paged_attention.cases import cases, specs
from fxhlo.kernels.spec import Case, Operands, TensorSpec
from fxhlo.passes.hlo.legalize import legalize
from fxhlo.runtime.core import pjrt
from fxhlo.runtime.core.dtypes import DTYPES
from fxhlo.runtime.core.targets import KNOWN, Target

PALLAS = next(one for one in KERNEL.implementations if one.name == "pallas")
TPUS = [name for name in KNOWN if name.startswith("tpu-")]
FAST = {"exec_time_optimization_effort": -1.0}
SCALES = ("k_scale", "v_scale")


class Compiled:
    """The kernel in an interpreter, compiled once for its shapes and called with any lengths."""

    def __init__(self, operands: dict[str, TensorSpec], attributes: dict[str, Any], target: str, mode: Any) -> None:
        self.operands, self.attributes, self.target = operands, attributes, Target.parse(target)
        named = Operands.of(operands, operands.values())
        self.refusal = PALLAS.refusal(named, attributes, self.target)
        if self.refusal is None:
            shapes = {name: jax.ShapeDtypeStruct(spec.shape, spec.dtype) for name, spec in operands.items()}
            lower = PALLAS.bound(self.target)
            with pltpu.force_tpu_interpret_mode(mode):
                self.run = jax.jit(lambda given: lower(**given, **attributes)).lower(shapes).compile()

    def check(self, arrays: dict[str, np.ndarray]) -> None:
        """Against the reference: the cache exactly, the output as its dtype allows."""
        output, updated = (np.asarray(array) for array in self.run(dict(arrays)))
        check(output, updated, arrays, self.attributes)


@cache
def compiled(key: tuple, target: str = "tpu-v6e", mode: Any = True) -> Compiled:
    shape, options, extras, attributes = key
    return Compiled(specs(*shape, **dict(options), extras=extras), dict(attributes), target, mode)


# Shapes are few, since each costs the interpreter some seconds; lengths, numbers and what is written are many.
# tokens, heads, KV heads, head size, page, requests, pages
WORDS = ((40, 6, 2, 128, 16, 5, 40), (), (), (("scale", 0.1), ("sliding_window", 0), ("soft_cap", 0.0)))
FULL = (
    (40, 6, 2, 80, 16, 5, 40), (("dtype", "bfloat16"), ("cache", "float8_e4m3fn")), ("sinks", "alibi_slopes", *SCALES),
    (("scale", 0.2), ("sliding_window", 21), ("soft_cap", 5.0)),
)  # fmt: skip
EXACT = (
    (40, 3, 1, 128, 32, 5, 20),
    (("dtype", "float32"),),
    (),
    (("scale", 0.1), ("sliding_window", 0), ("soft_cap", 0.0)),
)


def random_batch(key: tuple, draw: Any) -> dict[str, np.ndarray]:
    one = compiled(key)
    lengths = draw.draw(lengths_of(key[0]))
    seed, unwritten = draw.draw(st.integers(0, 2**32 - 1)), draw.draw(st.sampled_from([0.0, 0.3]))
    return batch(one.operands, lengths, seed, unwritten, one.attributes["sliding_window"])


LESS = pytest.mark.conformance


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(WORDS, id="bfloat16", marks=LESS),
        pytest.param(FULL, id="everything"),
        pytest.param(EXACT, id="float32", marks=LESS),
    ],
)
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(draw=st.data())
def test_numbers_of_the_reference(key: tuple, draw: Any) -> None:
    compiled(key).check(random_batch(key, draw))


def test_copies_are_awaited_before_what_they_bring_is_read(capfd: pytest.CaptureFixture[str]) -> None:
    """The strict interpreter runs a copy when it is awaited, fills memory that nobody wrote with NaN, and tells races."""
    key = (
        (9, 2, 1, 128, 64, 3, 32),
        (("dtype", "float32"),),
        (),
        (("scale", 0.1), ("sliding_window", 0), ("soft_cap", 0.0)),
    )
    strict = pltpu.InterpretParams(dma_execution_mode="on_wait", out_of_bounds_reads="raise", detect_races=True)
    one = compiled(key, mode=strict)
    # contexts that nearly fill their chunks: each row cleared after one is a call of the interpreter
    one.check(batch(one.operands, [(2040, 1), (1016, 6)], 3))
    assert "RACE" not in "".join(capfd.readouterr())


def refusal(operands: dict[str, TensorSpec], target: str = "tpu-v6e") -> str | None:
    return PALLAS.refusal(Operands.of(operands, operands.values()), {}, Target.parse(target))


def test_what_the_kernel_does_not_take_is_said_before_anything_compiles() -> None:
    shape = (8, 8, 2, 128, 16, 4, 8)
    assert refusal(specs(*shape)) is None
    wide = specs(*shape)
    half = np.dtype(np.float16)
    halves = {name: TensorSpec(spec.shape, half) if spec.dtype.itemsize == 2 else spec for name, spec in wide.items()}
    long = wide | {"seq_lens": TensorSpec((4,), np.dtype(np.int64))}
    assert [
        refusal(specs(8, 5, 2, 128, 16, 4, 8)), refusal(halves), refusal(wide | {"kv_cache": halves["kv_cache"]}),
        refusal(specs(8, 8, 2, 72, 16, 4, 8)), refusal(specs(8, 8, 2, 576, 16, 4, 8)), refusal(specs(8, 8, 2, 128, 24, 4, 8)),
        refusal(long), refusal(specs(8, 8, 2, 128, 16, 256, 2048)), refusal(specs(64, 64, 64, 256, 256, 4, 8), "tpu-v4"),
    ] == [
        "8 query heads are no multiple of 2 KV heads".replace("8", "5"),
        "query, key and value are not all bfloat16 or all float32",
        "the cache is float16, not one of bfloat16, float32, float8_e4m3fn, float8_e5m2, int8",
        "head size 72 is no multiple of 16 up to 256",
        "head size 576 is no multiple of 16 up to 256",
        "pages of 24 tokens are not one of 8, 16, 32, 64, 128, 256",
        "seq_lens is int64, not int32",
        "block tables of 2,099,328 bytes exceed scalar memory: longer pages make them shorter",
        "64 heads of 256 with pages of 256 tokens do not fit the vector memory of tpu-v4",
    ]  # fmt: skip


def module(operands: dict[str, TensorSpec], attributes: dict[str, Any]) -> str:
    """A portable module with the composite alone, its cache updated in place; the decomposition is not used."""
    types = [
        "tensor<" + "x".join([*map(str, spec.shape), DTYPES[spec.dtype.name].stablehlo]) + ">"
        for spec in operands.values()
    ]
    donated = [" {tf.aliasing_output = 1 : i32}" if name == "kv_cache" else "" for name in operands]
    arguments = [f"%a{at}: {type_}" for at, type_ in enumerate(types)]
    results = f"({types[0]}, {types[3]})"
    names = ", ".join(f'"{name}"' for name in operands)
    given = ", ".join(
        f"{name} = {number} : {'i64' if isinstance(number, int) else 'f32'}" for name, number in attributes.items()
    )
    return f"""module {{
      func.func public @main({", ".join(map("".join, zip(arguments, donated, strict=True)))}) -> {results} {{
        %0:2 = stablehlo.composite "fxhlo.ragged_paged_attention" {", ".join(f"%a{at}" for at in range(len(types)))}
          {{composite_attributes = {{operands = [{names}], {given}}}, decomposition = @reference, version = {KERNEL.version} : i32}}
          : ({", ".join(types)}) -> {results}
        return %0#0, %0#1 : {types[0]}, {types[3]}
      }}
      func.func private @reference({", ".join(arguments)}) -> {results} {{
        return %a0, %a3 : {types[0]}, {types[3]}
      }}
    }}"""


def check_in_place(operands: dict[str, TensorSpec], attributes: dict[str, Any], target: str) -> None:
    """Compiled for `target`, the cache is the result's memory and nothing of its size is made."""
    legal = legalize(module(operands, attributes).encode(), target)
    assert [decision.implementation for decision in legal.decisions] == ["pallas"], legal.decisions
    done = pjrt.compile_ahead(legal.bytecode, target, options=FAST)
    assert re.search(r"input_output_alias=\{[^\n]*\{1\}: \(3,", done.text)
    size = math.prod(operands["kv_cache"].shape) * operands["kv_cache"].dtype.itemsize
    assert done.memory.aliased >= size
    assert done.memory.temporaries < size / 4
    shape = ",".join(map(str, operands["kv_cache"].shape))
    makers = set(re.findall(rf"= \w+\[{shape}\]\S* ([\w-]+)\(", done.text))
    assert makers <= {"parameter", "custom-call", "get-tuple-element", "bitcast"}, makers


@pytest.mark.parametrize("head_size", [64, 128])
def test_the_cache_is_updated_where_it_lies(head_size: int) -> None:
    operands = specs(32, 8, 2, head_size, 16, 8, 32, blocks=8192)
    check_in_place(operands, {"scale": 0.1, "sliding_window": 0, "soft_cap": 0.0}, "tpu-v5e")


# ---- the whole matrix


@pytest.mark.conformance
@pytest.mark.parametrize("target", TPUS)
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_every_case_compiles_in_place_or_is_refused(case: Case, target: str) -> None:
    operands = dict(case.operands)
    blocks, *page = operands["kv_cache"].shape
    operands["kv_cache"] = TensorSpec((max(blocks, 2048), *page), operands["kv_cache"].dtype)
    if refusal(operands, target) is not None:
        assert target == "tpu-v4"  # a quarter of the others' vector memory, or less
        return
    check_in_place(operands, dict(case.attributes), target)


@st.composite
def shapes(draw: Any) -> tuple[tuple, str]:
    """Shapes and options from all that `supports` admits, small enough for the interpreter."""
    kv_heads = draw(st.sampled_from([1, 2, 3, 4, 8]))
    heads = kv_heads * draw(st.sampled_from([1, 2, 3, 5, 8]))
    block_size = draw(st.sampled_from(tuning.BLOCK_SIZES))
    pages = draw(st.integers(1, max(1, 700 // block_size)))
    head_size = draw(st.sampled_from([16, 48, 64, 80, 96, 112, 128, 192, 256]))
    shape = (draw(st.integers(1, 40)), heads, kv_heads, head_size, block_size, draw(st.integers(1, 5)), pages)
    dtype = draw(st.sampled_from(tuning.QUERIES))
    options = (("dtype", dtype), ("cache", draw(st.sampled_from([dtype, *tuning.CACHES]))))
    extras = tuple(draw(st.sets(st.sampled_from(["sinks", "alibi_slopes", *SCALES]))))
    attributes = (
        ("scale", draw(st.sampled_from([0.05, 0.3]))), ("sliding_window", draw(st.sampled_from([0, 1, 7, 100]))),
        ("soft_cap", draw(st.sampled_from([0.0, 3.0]))), ("chunk", draw(st.sampled_from([0, 0, 9, 64]))),
    )  # fmt: skip
    return (shape, options, extras, attributes), draw(st.sampled_from(TPUS))


@pytest.mark.conformance
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(shape=shapes(), draw=st.data())
def test_numbers_of_any_shape(shape: tuple[tuple, str], draw: Any) -> None:
    key, target = shape
    one = compiled(key, target)
    assume(one.refusal is None)
    for _ in range(3):
        lengths = draw.draw(lengths_of(key[0]))
        one.check(
            batch(one.operands, lengths, draw.draw(st.integers(0, 2**32 - 1)), 0.1, one.attributes["sliding_window"])
        )
