"""`fxhlo.ragged_paged_attention` for CUDA: its numbers in Pallas' interpreter against the reference, what it refuses, and what is lowered of it
without a GPU: one call of Triton's that updates the cache where it lies, and one that reads it."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_batches import batch, check, lengths_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from fxhlo.kernels.paged_attention import KERNEL, cuda_tiles
from fxhlo.kernels.paged_attention.cases import cases, specs
from fxhlo.kernels.paged_attention.cuda_attend import merged, tiles_of
from fxhlo.kernels.spec import Case, Operands, TensorSpec
from fxhlo.passes.hlo.implementation import lower_implementation
from fxhlo.runtime.core import pjrt
from fxhlo.runtime.core.plugins import has_cuda_plugin, without_triton
from fxhlo.runtime.core.targets import Target

TRITON = next(one for one in KERNEL.implementations if one.target == "cuda")
CUDA = Target("cuda")
PLAIN = {"scale": 0.1, "sliding_window": 0, "soft_cap": 0.0, "chunk": 0}
lowered = pytest.mark.skipif(
    without_triton() is not None, reason="this jaxlib lowers Triton's kernels by its CUDA plugin alone"
)


class Compiled:
    """The kernel in the interpreter, compiled once for its shapes and called with any lengths."""

    def __init__(self, operands: dict[str, TensorSpec], attributes: dict[str, Any]) -> None:
        self.operands, self.attributes = operands, attributes
        shapes = {name: jax.ShapeDtypeStruct(spec.shape, spec.dtype) for name, spec in operands.items()}
        lower = TRITON.bound(CUDA)
        with pltpu.force_tpu_interpret_mode(True):  # the plain interpreter, for any kernel
            self.run = jax.jit(lambda given: lower(**given, **attributes)).lower(shapes).compile()

    def check(self, arrays: dict[str, np.ndarray]) -> None:
        output, updated = (np.asarray(array) for array in self.run(dict(arrays)))
        check(output, updated, arrays, self.attributes)


@cache
def compiled(key: tuple) -> Compiled:
    shape, options, extras, attributes = key
    return Compiled(specs(*shape, **dict(options), extras=extras), PLAIN | dict(attributes))


# tokens, heads, KV heads, head size, page, requests, pages
ROWS = ((8, 6, 2, 80, 16, 8, 40), (), (), ())  # each row has programs of its own, which share its keys
TILES = ((40, 6, 2, 32, 16, 5, 40), (), ("sinks", "alibi_slopes"), (("sliding_window", 21), ("soft_cap", 5.0)))
FLOAT8 = ((6, 4, 2, 32, 8, 6, 10), (("cache", "float8_e4m3fn"),), ("k_scale", "v_scale"), ())
WHOLE = (
    (200, 32, 16, 16, 16, 17, 13), (("dtype", "float32"), ("cache", "int8")), ("sinks", "k_scale", "v_scale"), (("chunk", 24),)
)  # fmt: skip
"""So many tiles that none is split."""


def test_each_form_is_among_them() -> None:
    forms = {}
    for name, (shape, options, extras, _) in {"rows": ROWS, "tiles": TILES, "whole": WHOLE}.items():
        operands = specs(*shape, **dict(options), extras=extras)
        made = cuda_tiles.tiles_for(operands["query"], operands["kv_cache"], *operands["block_tables"].shape)
        forms[name] = made.rows > 1, made.splits > 1
    assert forms == {"rows": (False, True), "tiles": (True, True), "whole": (True, False)}


@pytest.mark.parametrize("key", [ROWS, TILES, WHOLE, FLOAT8], ids=["rows", "tiles", "whole", "float8"])
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(draw=st.data())
def test_numbers_of_the_reference(key: tuple, draw: Any) -> None:
    one = compiled(key)
    lengths = draw.draw(lengths_of(key[0]))
    seed, unwritten = draw.draw(st.integers(0, 2**32 - 1)), draw.draw(st.sampled_from([0.0, 0.3]))
    one.check(batch(one.operands, lengths, seed, unwritten, one.attributes["sliding_window"]))


def test_what_lies_outside_of_an_operand_is_not_read() -> None:
    """Pages, lengths and starts that name nothing: the answer is anything, rows of other requests are right."""
    one = compiled(ROWS)
    arrays = batch(one.operands, [(100, 1), (30, 1), (5, 1)], 1)
    right, _ = one.run(dict(arrays))
    tables, lengths = arrays["block_tables"].copy(), arrays["seq_lens"].copy()
    tables[1], lengths[1] = 2**31 - 1, 2**30
    wrong, _ = one.run({**arrays, "block_tables": tables, "seq_lens": lengths})
    np.testing.assert_array_equal(np.asarray(wrong)[[0, 2]], np.asarray(right)[[0, 2]])


def test_splits_merge_to_the_softmax_over_all_keys() -> None:
    rng = np.random.default_rng(0)
    scores, values = rng.standard_normal((4, 3, 2, 8)) * 30, rng.standard_normal((4, 3, 2, 8, 5))
    scores[1], scores[2:, 1] = -np.inf, -np.inf  # a split without keys, and a row with few
    highest = scores.max(-1)
    powers = np.exp2(scores - np.where(np.isfinite(highest), highest, 0)[..., None])
    outputs = np.einsum("stnk,stnkd->stnd", powers, values)
    weights = np.exp2(scores - scores.max((0, 3))[None, ..., None])
    wanted = np.einsum("stnk,stnkd->tnd", weights, values) / weights.sum((0, 3))[..., None]
    found = merged(jnp.asarray(outputs), jnp.asarray(highest), jnp.asarray(powers.sum(-1)), {})
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=7), st.sampled_from([2, 8, 16]))
def test_every_row_lies_in_one_tile(counts: list[int], rows: int) -> None:
    tokens, starts = sum(counts) + 3, np.cumsum([0, *counts]).astype(np.int32)
    tiles = cuda_tiles.Tiles(rows, tokens // rows + len(counts), 1, 1, 16, 16, 1)
    lengths = np.array(counts, np.int32) + 5
    found = np.asarray(tiles_of(tokens, jnp.asarray(lengths), jnp.asarray(starts), tiles))
    seen = [(request, first + at, position + at) for request, first, position, count in found for at in range(count)]
    wanted = [(request, starts[request] + at, 5 + at) for request, count in enumerate(counts) for at in range(count)]
    assert sorted(map(tuple, np.array(seen, int).reshape(-1, 3).tolist())) == sorted(wanted)


def refusal(operands: dict[str, TensorSpec], target: str = "cuda-h100") -> str | None:
    return TRITON.refusal(Operands.of(operands, operands.values()), PLAIN, Target(target))


@lowered
def test_what_the_kernel_does_not_take_is_said_before_anything_compiles() -> None:
    shape = (8, 8, 2, 128, 16, 4, 8)
    assert refusal(specs(*shape)) is None
    assert refusal(specs(8, 8, 2, 72, 24, 4, 8)) is None  # any head size and any page
    long = specs(*shape) | {"seq_lens": TensorSpec((4,), np.dtype(np.int64))}
    mixed = specs(*shape) | {"key": TensorSpec((8, 2, 128), np.dtype(np.float32))}
    assert [
        refusal(specs(8, 5, 2, 128, 16, 4, 8)), refusal(mixed), refusal(specs(*shape, cache="float8_e5m2"), "cuda-a100"),
        refusal(specs(8, 8, 2, 576, 16, 4, 8)), refusal(long), refusal(specs(*shape, cache="int8", blocks=400_000)),
    ] == [
        "5 query heads are no multiple of 2 KV heads",
        "query, key and value are not all bfloat16, all float16 or all float32",
        "the cache is float8_e5m2, which cuda-a100 is not known to convert",
        "head size 576 is not within 16 and 256",
        "seq_lens is int64, not int32",
        "a cache of one byte a number and between 2 and 4 GiB is addressed wrongly by Pallas",
    ]  # fmt: skip


@lowered
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_every_case_is_lowered_without_a_gpu(case: Case) -> None:
    """The cache is the write's result in its own memory; nothing of its size is made."""
    operands = Operands.of(case.operands, case.operands.values())
    assert refusal(dict(case.operands)) is None
    text = lower_implementation(TRITON, operands, case.attributes, Target("cuda-h100"))
    calls = [line for line in text.splitlines() if "custom_call" in line]
    assert [
        (re.findall(r'custom_call @(\S+?)\(|, name = "(\w+)"', call), "operand_index = 3" in call) for call in calls
    ] == [
        ([("__gpu$xla.gpu.triton", ""), ("", "fxhlo_paged_attention_write")], True),
        ([("__gpu$xla.gpu.triton", ""), ("", "fxhlo_paged_attention")], False),
    ]


@pytest.mark.skipif(not has_cuda_plugin(), reason="jax's CUDA plugin is not installed (docs/quickstart_gpu.md)")
@pytest.mark.parametrize("place", [0, 3], ids=["decode", "one KV head"])
def test_the_cache_is_updated_where_it_lies(place: int) -> None:
    """By XLA's compiler for an H100: the cache is the result's memory, and nothing of its size is made."""
    case = cases()[place]
    text = lower_implementation(
        TRITON, Operands.of(case.operands, case.operands.values()), case.attributes, Target("cuda-h100")
    )
    type_ = re.search(r"%arg3: (tensor<\S+>)", text)[1]  # type: ignore[index]
    donated = text.replace(f"%arg3: {type_}", f"%arg3: {type_} {{tf.aliasing_output = 1 : i32}}", 1)
    done = pjrt.compile_ahead(donated, "cuda-h100")
    cache = case.operands["kv_cache"]
    size = math.prod(cache.shape) * cache.dtype.itemsize
    assert done.memory.aliased >= size
    assert done.memory.temporaries < size / 4
    shape = ",".join(map(str, cache.shape))
    makers = set(re.findall(rf"= \w+\[{shape}\]\S* ([\w-]+)\(", done.text))
    assert makers <= {"parameter", "custom-call", "get-tuple-element", "bitcast"}, makers
