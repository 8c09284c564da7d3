"""Every native kernel (runtime/core/native) against its kernel's reference in eager torch: dtypes, odd sizes, what is no number.

tests/runtime/test_native.py has the products and attention against float64, and a row's bits in any batch; test_moe_native.py has experts. These tests run as
well on lesser instruction sets and under sanitizers (test_native_builds.py).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import torch

import fxhlo.jax
from fxhlo.kernels import (
    attention,
    linear,
    logprobs,
    paged_attention,
    paged_latent_attention,
    process_logits,
    rms_norm,
    sample,
    silu_and_mul,
    varlen_attention,
)
from fxhlo.kernels.catalog import kernels, register_torch_ops
from fxhlo.kernels.paged_attention.cases import specs, values
from fxhlo.kernels.paged_latent_attention.cases import MODELS, Sizes
from fxhlo.kernels.paged_latent_attention.cases import specs as latent_specs
from fxhlo.kernels.paged_latent_attention.cases import values as latent_values
from fxhlo.kernels.process_logits.cases import values as processing
from fxhlo.kernels.ragged_causal_conv1d.cases import operands_of
from fxhlo.kernels.ragged_causal_conv1d.cases import values as stepping
from fxhlo.kernels.ragged_ssd.cases import specs as ssd
from fxhlo.kernels.spec import Kernel, Operands, TensorSpec
from fxhlo.kernels.varlen_attention.cases import attributes as varlen_attributes
from fxhlo.kernels.varlen_attention.cases import specs as varlen_specs
from fxhlo.kernels.varlen_attention.cases import values as varlen_values
from fxhlo.runtime.core import native
from fxhlo.runtime.core.errors import ExecutionError
from fxhlo.runtime.core.targets import Target

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))

F32, I32 = np.float32, np.int32
DTYPES = {"float32": F32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
INF, NAN = np.inf, np.nan
NO_NUMBERS = np.array([NAN, INF, -INF, 0.0, -0.0, 1e-40, 6e4, -6e4], F32)
LARGE = {"float32": 3.4e38, "bfloat16": 3.3e38, "float16": 6.5e4}


def tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def run(kernel: Kernel, operands: Mapping[str, np.ndarray], **attributes: Any) -> list[np.ndarray]:
    """The native kernel's results."""
    (implementation,) = (one for one in kernel.implementations if one.name == "native")
    given = Operands.of(operands, (TensorSpec(array.shape, array.dtype) for array in operands.values()))
    assert implementation.refusal(given, attributes, Target("cpu")) is None
    results = jax.jit(partial(implementation.lower, **attributes))(**operands)
    return [np.asarray(one) for one in (results if isinstance(results, tuple | list) else (results,))]


def expected(kernel: Kernel, operands: Mapping[str, np.ndarray], **attributes: Any) -> list[np.ndarray]:
    tensors = {name: tensor(np.array(array)) for name, array in operands.items()}
    optional = {name: None for name in ("bias", "sinks", "alibi_slopes") if f"Tensor? {name}" in kernel.schema}
    results = kernel.reference(**optional | tensors, **attributes)
    arrays = [
        one if one.dtype == torch.int32 else one.float()
        for one in (results if isinstance(results, tuple) else (results,))
    ]
    return [one.numpy() for one in arrays]


def close(found: Iterable[np.ndarray], right: Iterable[np.ndarray], tolerance: float) -> None:
    for one, other in zip(found, right, strict=True):
        np.testing.assert_allclose(one.astype(other.dtype), other, rtol=tolerance, atol=tolerance)


def same_bits(found: Iterable[np.ndarray], right: Iterable[np.ndarray]) -> None:
    for one, other in zip(found, right, strict=True):
        np.testing.assert_array_equal(one.view(I32), other.view(I32))


def test_each_native_kernel_is_here() -> None:
    here = {
        name.removeprefix("fxhlo.")
        for name, kernel in kernels().items()
        if any(i.name == "native" for i in kernel.implementations)
    }
    assert here == {
        "copy_row",
        "linear",
        "rms_norm",
        "silu_and_mul",
        "moe",
        "ragged_paged_attention",
        "ragged_paged_latent_attention",
        "process_logits",
        "sample",
        "logprobs",
        *RECURRENT,
        "varlen_attention",
    }
    assert not any(one.name == "native" for one in attention.KERNEL.implementations)


# ---- products, norms and activations -----------------------------------------------------------------------------


ROUNDING = {"float32": 2e-5, "bfloat16": 2.0**-7, "float16": 2.0**-10}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 7, 5), (9, 33, 70), (70, 65, 129), (0, 3, 4), (3, 0, 4), (3, 4, 0)], ids=str)
def test_linear(shape: tuple[int, int, int], dtype: str) -> None:
    rng, (rows, outputs, inputs) = np.random.default_rng(0), shape
    operands = {
        "values": rng.standard_normal((rows, inputs)).astype(DTYPES[dtype]),
        "weight": (rng.standard_normal((outputs, inputs)) / max(inputs, 1) ** 0.5).astype(DTYPES[dtype]),
        "bias": rng.standard_normal(outputs).astype(DTYPES[dtype]),
    }
    if rows > 8:
        operands["values"][3, :4] = NAN, INF, -INF, 1.0
    for given in (operands, {name: operands[name] for name in ("values", "weight")}):
        close(run(linear.KERNEL, given), expected(linear.KERNEL, given), 2 * ROUNDING[dtype])


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 33), (2, 3, 40), (5, 130), (0, 8), (4, 0)], ids=str)
def test_rms_norm(shape: tuple[int, ...], dtype: str, wide: bool) -> None:
    rng = np.random.default_rng(1)
    operands = {
        "values": rng.standard_normal(shape).astype(F32 if wide else DTYPES[dtype]),
        "weight": rng.standard_normal(shape[-1]).astype(DTYPES[dtype]),
    }
    if shape[-1] > 8:
        operands["values"][-1].reshape(-1)[:2] = NAN, INF
        operands["values"][0] = 0.0
    found, right = run(rms_norm.KERNEL, operands, epsilon=1e-6), expected(rms_norm.KERNEL, operands, epsilon=1e-6)
    close(found, right, 2 * ROUNDING[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 2), (3, 66), (7, 40), (0, 8), (4, 0)], ids=str)
def test_silu_and_mul(shape: tuple[int, int], dtype: str) -> None:
    rng = np.random.default_rng(2)
    operands = {"values": (rng.standard_normal(shape) * 20).astype(DTYPES[dtype])}
    if shape[1] > 20:
        size = shape[1] // 2
        operands["values"][0, :8], operands["values"][1, size : size + 8] = NO_NUMBERS, NO_NUMBERS
        operands["values"][2, 5:8] = (
            2.0**-24,
            -(2.0**-15),
            2.0**-14,
        )  # float16's denormal numbers, and its least normal one
        operands["values"][2, :5] = -LARGE[dtype], LARGE[dtype], -88.0, -89.0, -87.0
    close(run(silu_and_mul.KERNEL, operands), expected(silu_and_mul.KERNEL, operands), 2 * ROUNDING[dtype])


# ---- attention ---------------------------------------------------------------------------------------------------

LENGTHS = [(40, 1), (0, 21), (5, 12), (0, 0), (100, 1)]
PAGED = {
    "mixed": ((48, 4, 2, 64, 16, 7, 10), {}, ()),
    "odd head": ((48, 3, 3, 37, 5, 7, 32), {}, ()),
    "large head": ((48, 2, 1, 576, 16, 7, 10), {}, ()),
    "head of one": ((48, 2, 1, 1, 16, 7, 10), {}, ()),
    "window": ((48, 4, 2, 64, 16, 7, 10), {"sliding_window": 13}, ()),
    "everything": ((48, 6, 2, 40, 8, 7, 20), {"sliding_window": 30, "soft_cap": 3.0}, ("sinks", "alibi_slopes")),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PAGED)
def test_paged_attention(name: str, dtype: str) -> None:
    """Requests without rows among them, pages that are not read and rows that are no request's: anything stands there."""
    shape, changed, extras = PAGED[name]
    operands = specs(*shape, dtype="float32", extras=extras)
    made = dict(values(operands, LENGTHS)(np.random.default_rng(3)))
    for request, (done, new) in enumerate([*LENGTHS, (0, 0), (0, 0)]):
        used = -(-(done + new) // shape[4]) if new else 0
        made["block_tables"][request, used:] = [-1, 10**6, -(2**31)][request % 3]
    made["kv_cache"][-1] = NAN
    made["slot_mapping"][-4:] = [-1, 2**31 - 1, -(2**31), shape[5] * shape[6] * shape[4] + shape[4]]
    for each in ("query", "key", "value", "kv_cache"):
        made[each] = made[each].astype(DTYPES[dtype])
    attributes = {"scale": shape[3] ** -0.5, "sliding_window": 0, "soft_cap": 0.0} | changed
    found, right = run(paged_attention.KERNEL, made, **attributes), expected(paged_attention.KERNEL, made, **attributes)
    close(found[:1], right[:1], {"float32": 2e-5, "bfloat16": 2e-2, "float16": 2e-3}[dtype])
    np.testing.assert_array_equal(found[1].astype(F32), right[1])


def test_paged_attention_of_values_that_are_no_numbers() -> None:
    operands = specs(24, 4, 2, 32, 16, 4, 4, dtype="float32")
    made = dict(values(operands, [(20, 3), (0, 12)])(np.random.default_rng(4)))
    made["key"][1], made["value"][8, 0, 3], made["query"][5, 2] = NAN, INF, -INF
    attributes = {"scale": 0.2, "sliding_window": 0, "soft_cap": 0.0}
    found, right = run(paged_attention.KERNEL, made, **attributes), expected(paged_attention.KERNEL, made, **attributes)
    close(found[:1], right[:1], 2e-5)


VARLEN = {
    "texts": ((170, 4, 2, 64, 7), {}),
    "odd head": ((170, 3, 3, 37, 7), {}),
    "large head": ((170, 2, 1, 576, 7), {}),
    "causal": ((170, 4, 1, 24, 7), {"causal": True}),
    "window": ((170, 4, 2, 64, 7), {"sliding_window": 13}),
    "window of one": ((170, 2, 2, 16, 7), {"sliding_window": 1}),
    "everything": ((170, 6, 2, 40, 7), {"sliding_window": 30, "soft_cap": 3.0, "causal": True}),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VARLEN)
def test_varlen_attention(name: str, dtype: str) -> None:
    """Sequences of none, one and many rows, and rows of no sequence: anything stands there."""
    shape, changed = VARLEN[name]
    operands, lengths = varlen_specs(*shape, dtype=np.dtype(DTYPES[dtype])), [70, 0, 1, 64, 21]
    made = dict(varlen_values(operands, lengths)(np.random.default_rng(5)))
    for each in ("query", "key", "value"):
        made[each][sum(lengths) :] = NAN
    attributes = varlen_attributes(shape[3], **changed)
    for sinks in ({}, {"sinks": np.linspace(-3, 3, shape[1], dtype=F32)}):
        found = run(varlen_attention.KERNEL, made | sinks, **attributes)
        right = expected(varlen_attention.KERNEL, made | sinks, **attributes)
        close(found, right, {"float32": 2e-5, "bfloat16": 2e-2, "float16": 2e-3}[dtype])
        assert not found[0][sum(lengths) :].any()


def test_varlen_attention_of_values_that_are_no_numbers() -> None:
    """They reach the rows of their own sequence that see them, and no others."""
    operands = varlen_specs(40, 2, 2, 32, 3, np.dtype(F32))
    made = dict(varlen_values(operands, [20, 18])(np.random.default_rng(6)))
    made["value"][8, 0, 3], made["key"][30, 1], made["query"][5, 1] = INF, NAN, -INF
    attributes = varlen_attributes(32, sliding_window=4)
    found, right = (
        run(varlen_attention.KERNEL, made, **attributes),
        expected(varlen_attention.KERNEL, made, **attributes),
    )
    finite = np.isfinite(right[0])
    np.testing.assert_array_equal(np.isfinite(found[0]), finite)
    assert (~finite).any(axis=(1, 2)).nonzero()[0].tolist() == [*range(5, 12), *range(27, 34)]
    np.testing.assert_allclose(found[0][finite], right[0][finite], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sequence_has_the_same_bits_alone_and_among_others(dtype: str) -> None:
    operands = varlen_specs(200, 4, 2, 24, 4, np.dtype(DTYPES[dtype]))
    made = dict(varlen_values(operands, [33, 90, 70])(np.random.default_rng(7)))
    attributes = varlen_attributes(24, sliding_window=40)
    together = run(varlen_attention.KERNEL, made, **attributes)[0]
    alone = {name: made[name][33:123] for name in ("query", "key", "value")} | {
        "query_start_loc": np.array([0, 90], I32)
    }
    found = run(varlen_attention.KERNEL, alone, **attributes)[0]
    np.testing.assert_array_equal(found.astype(F32), together[33:123].astype(F32))


LATENT = {
    "mixed": (Sizes(4, 24, 8, 64, 16), 16, 10, 0),
    "odd": (Sizes(3, 11, 17, 20, 7), 5, 32, 0),
    "of a served model": (MODELS["DeepSeek-V2-Lite"], 16, 10, 0),
    "more heads than a tile": (Sizes(80, 12, 8, 16, 12), 16, 10, 0),
    "window": (Sizes(4, 24, 8, 64, 16), 16, 10, 13),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LATENT)
def test_paged_latent_attention(name: str, dtype: str) -> None:
    """As of keys and values: anything stands in pages and slots that are not read."""
    sizes, block_size, pages, window = LATENT[name]
    operands = latent_specs(48, sizes, block_size, 7, pages, dtype="float32")
    made = dict(latent_values(operands, LENGTHS)(np.random.default_rng(3)))
    for request, (done, new) in enumerate([*LENGTHS, (0, 0), (0, 0)]):
        used = -(-(done + new) // block_size) if new else 0
        made["block_tables"][request, used:] = [-1, 10**6, -(2**31)][request % 3]
    made["kv_cache"][-1] = NAN
    made["slot_mapping"][-3:] = [-1, 2**31 - 1, -(2**31)]
    for each in ("query", "latent", "w_uk", "w_uv", "kv_cache"):
        made[each] = made[each].astype(DTYPES[dtype])
    attributes = {"scale": operands["query"].shape[2] ** -0.5, "sliding_window": window}
    kernel = paged_latent_attention.KERNEL
    found, right = run(kernel, made, **attributes), expected(kernel, made, **attributes)
    close(found[:1], right[:1], {"float32": 2e-5, "bfloat16": 2e-2, "float16": 2e-3}[dtype])
    np.testing.assert_array_equal(found[1].astype(F32), right[1])


def test_paged_latent_attention_of_values_that_are_no_numbers() -> None:
    operands = latent_specs(24, Sizes(4, 12, 8, 32, 10), 16, 4, 4, dtype="float32")
    made = dict(latent_values(operands, [(20, 3), (0, 12)])(np.random.default_rng(4)))
    made["latent"][1, 3], made["latent"][8, 2], made["query"][5, 2] = NAN, INF, -INF
    attributes = {"scale": 0.2, "sliding_window": 0}
    kernel = paged_latent_attention.KERNEL
    found, right = run(kernel, made, **attributes), expected(kernel, made, **attributes)
    close(found[:1], right[:1], 2e-5)


# ---- sampling ----------------------------------------------------------------------------------------------------


def some_logits(rng: np.random.Generator, rows: int, size: int) -> np.ndarray:
    """Rows of numbers; of equal ones; with what is no number; of -infinity, of NaN, and of +infinity among others."""
    x = (rng.standard_normal((rows, size)) * 4).astype(F32)
    for row in range(rows):
        kind = row % 7
        if kind == 1:
            x[row] = np.round(x[row])
        elif kind == 2:
            x[row, rng.random(size) < 0.3] = rng.choice(NO_NUMBERS)
        elif kind in (3, 4, 5):
            x[row] = (-INF, NAN, 2.5)[kind - 3]
        elif kind == 6:
            x[row, 0] = INF
    return x


@pytest.mark.parametrize("size", [1, 2, 63, 515, 1031])
def test_sample(size: int) -> None:
    rng, rows = np.random.default_rng(size), 56
    operands = {
        "logits": some_logits(rng, rows, size),
        "temperature": rng.choice(np.array([0, 1e-6, 0.7, 1, 100, INF, NAN, -1], F32), rows),
        "top_k": rng.choice(np.array([-(2**31), -1, 0, 1, 2, size - 1, size, size + 1, 2**31 - 1], I32), rows),
        "top_p": rng.choice(np.array([-1, 0, 1e-9, 0.5, 0.99, 1, 2, INF, NAN], F32), rows),
        "min_p": rng.choice(np.array([-1, 0, 1e-6, 0.3, 1, 2, INF, NAN], F32), rows),
        "seeds": rng.integers(-(2**31), 2**31, (rows, 2)).astype(I32),
        "steps": rng.integers(-(2**31), 2**31, rows).astype(I32),
    }
    same_bits(run(sample.KERNEL, operands), expected(sample.KERNEL, operands))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 31, 33, 70, 515])
def test_process_logits(size: int, dtype: str) -> None:
    """Ids outside the vocabulary name no token."""
    rng, rows = np.random.default_rng(size), 14
    operands = dict(processing(rows, size, biases=9, seen=20)(rng))
    operands["logits"] = some_logits(rng, rows, size).astype(DTYPES[dtype])
    operands["repetition_penalty"][3] = 0.0
    for ids in ("bias_ids", "seen_ids"):
        operands[ids][rng.random(operands[ids].shape) < 0.2] = rng.choice(
            np.array([size, size + 1, 2**31 - 1, -2, -(2**31)], I32)
        )
    for flags in ((1, 1, 1), (0, 0, 0), (1, 0, 1)):
        given = operands | {"flags": np.array(flags, I32)}
        (found,), (right,) = run(process_logits.KERNEL, given), expected(process_logits.KERNEL, given)
        np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "count"), [(1, 0), (1, 1), (67, 3), (70, 70), (515, 65), (2000, 64), (2000, 2000)])
def test_logprobs(size: int, count: int, dtype: str) -> None:
    rng, rows = np.random.default_rng(size), 14
    logits = some_logits(rng, rows, size).astype(DTYPES[dtype])
    tokens = rng.integers(0, size, rows).astype(I32)
    operands = {"logits": logits, "tokens": tokens, "enabled": np.array(1, I32)}
    found, right = run(logprobs.KERNEL, operands, count=count), expected(logprobs.KERNEL, operands, count=count)
    same_bits(found[::2], right[::2])
    close(found[1:2], right[1:2], 2e-5)
    off = operands | {"enabled": np.array(0, I32), "tokens": tokens + 2_000_000_000}
    assert not any(one.any() for one in run(logprobs.KERNEL, off, count=count))


@pytest.mark.parametrize("kernel", [sample, process_logits, logprobs], ids=lambda kernel: kernel.KERNEL.name)
def test_no_rows(kernel: Any) -> None:
    shapes = {
        "logits": (0, 9), "seeds": (0, 2), "flags": (3,), "allowed_mask": (0, 1), "enabled": (),
        **dict.fromkeys(("bias_ids", "bias_values", "seen_ids", "seen_counts"), (0, 4)),
    }  # fmt: skip
    names = [
        word.rstrip(",)")
        for word in kernel.KERNEL.schema.partition("->")[0].replace("Tensor ", "").split("(")[1].split()
        if word[0].islower()
    ]
    operands = {
        name: np.ones(shapes.get(name, (0,)), I32 if kernel.KERNEL.dtypes[name] == ("int32",) else F32)
        for name in names
        if name in kernel.KERNEL.dtypes
    }
    attributes = {"count": 3} if kernel is logprobs else {}
    found, right = run(kernel.KERNEL, operands, **attributes), expected(kernel.KERNEL, operands, **attributes)
    assert [(one.shape, one.dtype) for one in found] == [(one.shape, one.dtype) for one in right]


# ---- states ------------------------------------------------------------------------------------------------------


def convolution(rows: int, channels: int, taps: int, dtype: np.dtype, state: np.dtype) -> dict[str, TensorSpec]:
    shapes = {"values": (rows, channels), "weight": (channels, taps), "bias": (channels,)}
    return operands_of(shapes, (taps - 1, channels), 6, dtype, state)


def scan(rows: int, channels: int, size: int, dtype: np.dtype, state: np.dtype) -> dict[str, TensorSpec]:
    shapes = {
        "x": (rows, channels), "dt": (rows, channels), "a": (channels, size), "b": (rows, size), "c": (rows, size),
        "d": (channels,), "dt_bias": (channels,),
    }  # fmt: skip
    return operands_of(shapes, (channels, size), 6, dtype, state)


def delta(
    rows: int,
    key_heads: int,
    heads: int,
    keys: int,
    size: int,
    dtype: np.dtype,
    state: np.dtype,
    channels: bool = False,
) -> dict[str, TensorSpec]:
    shapes = {
        "q": (rows, key_heads, keys), "k": (rows, key_heads, keys), "v": (rows, heads, size),
        "g": (rows, heads, keys) if channels else (rows, heads), "beta": (rows, heads),
    }  # fmt: skip
    return operands_of(shapes, (heads, size, keys), 6, dtype, state)


def lightning(rows: int, heads: int, size: int, dtype: np.dtype, state: np.dtype) -> dict[str, TensorSpec]:
    shapes = dict.fromkeys(("q", "k", "v"), (rows, heads, size)) | {"slopes": (heads,)}
    return operands_of(shapes, (heads, size, size), 6, dtype, state)


RECURRENT = {"ragged_causal_conv1d", "ragged_selective_scan", "ragged_ssd", "ragged_gated_delta_rule", "ragged_lightning_attention"}  # fmt: skip
STEPS: dict[str, tuple[str, Callable[..., dict[str, TensorSpec]], dict[str, Any]]] = {
    "conv": ("ragged_causal_conv1d", lambda rows, **types: convolution(rows, 70, 4, **types), {"silu": True}),
    "conv of one tap": ("ragged_causal_conv1d", lambda rows, **types: convolution(rows, 3, 1, **types), {"silu": False}),
    "scan": ("ragged_selective_scan", lambda rows, **types: scan(rows, 37, 5, **types), {}),
    "scan, 16 values": ("ragged_selective_scan", lambda rows, **types: scan(rows, 64, 16, **types), {}),
    "ssd": ("ragged_ssd", lambda rows, **types: ssd(rows, 6, 20, 2, 37, 6, **types), {}),
    "ssd, whole vectors": ("ragged_ssd", lambda rows, **types: ssd(rows, 4, 32, 1, 64, 6, **types), {}),
    "delta": ("ragged_gated_delta_rule", lambda rows, **types: delta(rows, 2, 4, 32, 23, **types), {"scale": 0.3, "l2norm": True}),
    "delta by channel": (
        "ragged_gated_delta_rule", lambda rows, **types: delta(rows, 3, 3, 21, 16, channels=True, **types),
        {"scale": 0.3, "l2norm": True},
    ),
    "lightning": ("ragged_lightning_attention", lambda rows, **types: lightning(rows, 3, 24, **types), {}),
}  # fmt: skip
ROWS_OF = ("values", "x", "dt", "b", "c", "q", "k", "v", "g", "beta")


@pytest.mark.parametrize(
    ("dtype", "state"),
    [("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16")],
)
@pytest.mark.parametrize("name", STEPS)
def test_a_step_with_states(name: str, dtype: str, state: str) -> None:
    """Requests without rows among them; slots of new requests and rows of no request hold NaN."""
    kernel, make, attributes = STEPS[name]
    specs = make(48, dtype=np.dtype(DTYPES[dtype]), state=np.dtype(DTYPES[state]))
    operands = dict(stepping(specs, [(40, 1), (0, 21), (3, 0), (5, 12), (0, 1)])(np.random.default_rng(5)))
    operands["state"][operands["state_slots"][[1, 4]]] = NAN
    for one in set(ROWS_OF) & set(operands):
        operands[one][35:] = NAN
    found = run(kernels()[f"fxhlo.{kernel}"], operands, **attributes)
    right = expected(kernels()[f"fxhlo.{kernel}"], operands, **attributes)
    for one, other, rounding in zip(found, right, (ROUNDING[dtype], ROUNDING[state]), strict=True):
        np.testing.assert_allclose(one.astype(F32), other, rtol=4 * rounding, atol=4 * rounding)
    idle = [slot for slot in range(1, 7) if slot not in operands["state_slots"][[0, 1, 3, 4]]]
    np.testing.assert_array_equal(found[1][idle], operands["state"][idle])


@pytest.mark.parametrize("name", [name for name in STEPS if name != "conv of one tap"])
def test_a_sequence_in_chunks_beside_others_gives_the_bits_of_the_whole(name: str) -> None:
    kernel, make, attributes = STEPS[name]
    types = {"dtype": np.dtype(F32), "state": np.dtype(F32)}
    whole = dict(stepping(make(40, **types), [(0, 40)])(np.random.default_rng(6)))
    right, state = run(kernels()[f"fxhlo.{kernel}"], whole, **attributes)
    slot, done, found = 2, 0, []
    current = np.full_like(state, NAN)
    for new, other in ((17, 20), (1, 0), (21, 3), (1, 1)):
        lengths = [(9, other), (done, new)]
        step = whole | dict(stepping(make(other + new, **types), lengths)(np.random.default_rng(7)))
        for one in set(whole) - {"state", "state_slots", "seq_lens", "query_start_loc"}:
            step[one] = whole[one]
            if one in ROWS_OF:
                step[one] = np.concatenate([np.flip(whole[one], 0)[:other], whole[one][done : done + new]])
        step["state_slots"][:2], step["state"] = (5, slot), current
        current[5] = 0.25
        made, current = run(kernels()[f"fxhlo.{kernel}"], step, **attributes)
        found.append(made[other:])
        current, done = np.array(current), done + new
    same_bits([np.concatenate(found), current[slot]], [right, state[whole["state_slots"][0]]])


# ---- the door ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.conformance)])
def test_whatever_is_malformed_is_an_error_that_names_the_kernel(every: int) -> None:
    """In a process of its own, which a kernel that does not look would end (malformed.py)."""
    script = Path(__file__).with_name("malformed.py")
    command = [sys.executable, "-P", str(script), str(every)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, f"{done.stdout[-300:]}\n{done.stderr[-2000:]}"
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {one["target"] for one in found} == set(native.TARGETS)
    assert len(found) > 300 // every
    refused = [one for one in found if f"{re.sub('_(bias|used)$', '', one['target'])}: " in (one["error"] or "")]
    assert [one for one in found if one not in refused] == []


def test_the_error_says_which_operand_and_where() -> None:
    logits, enabled = np.zeros((2, 100), F32), np.array(1, I32)
    given = {"logits": logits, "tokens": np.array([3, 2_000_000_000], I32), "enabled": enabled}
    with pytest.raises(Exception, match="fxhlo_logprobs: row 1: token 2000000000 is not in a vocabulary of 100"):
        run(logprobs.KERNEL, given, count=3)
    operands = dict(processing(2, 100, biases=2, seen=2)(np.random.default_rng(0)))
    with pytest.raises(Exception, match=r"allowed_mask is int32 \[2, 3\], not int32 \[2, 4\]"):
        run(process_logits.KERNEL, operands | {"allowed_mask": operands["allowed_mask"][:, :3].copy()})


def test_a_compiled_module_says_it_too() -> None:
    logits, enabled = np.zeros((2, 100), F32), np.array(1, I32)
    module = fxhlo.jax.lower(
        lambda x, at, on: fxhlo.jax.logprobs(x, at, on, count=3), logits, np.zeros(2, I32), enabled
    )
    with pytest.raises(
        ExecutionError, match="row 1: token 2000000000 is not in a vocabulary of 100\n  next: correct the value"
    ):
        module.compile()(logits, np.array([3, 2_000_000_000], I32), enabled)


def test_eager_torch_refuses_what_the_native_kernel_refuses() -> None:
    register_torch_ops()
    logits, enabled = torch.zeros(2, 100), torch.tensor(1, dtype=torch.int32)
    for token in (-1, 100, 2_000_000_000):
        with pytest.raises(IndexError, match=f"row 1: token {token} is not in a vocabulary of 100"):
            torch.ops.fxhlo.logprobs(logits, torch.tensor([3, token], dtype=torch.int32), enabled, count=3)
    operands = specs(8, 4, 2, 8, 4, 2, 3, dtype="float32")
    made = {name: tensor(array) for name, array in values(operands, [(3, 2), (0, 5)])(np.random.default_rng(0)).items()}
    attributes = {"scale": 1.0, "sliding_window": 0, "soft_cap": 0.0}

    def attend(name: str, place: int, value: int) -> None:
        changed = made[name].clone()
        changed.view(-1)[place] = value
        torch.ops.fxhlo.ragged_paged_attention(**made | {name: changed}, sinks=None, alibi_slopes=None, **attributes)

    attend("block_tables", 2, -1)  # the third page of a request of five tokens on pages of four is not read
    for name, place, value, message in (
        ("block_tables", 1, -1, "request 0: entry 1 of its block table is -1, the cache has 7 blocks"),
        ("block_tables", 3, 7, "request 1: entry 0 of its block table is 7"),
        ("seq_lens", 1, 13, "request 1: seq_lens is 13, its block table holds 12 tokens"),
        ("query_start_loc", 0, 1, "query_start_loc begins at 1, not at 0"),
        ("query_start_loc", 2, 9, "request 1: rows 2 to 9 of query_start_loc are not in a batch of 8"),
    ):
        with pytest.raises(IndexError, match=message):
            attend(name, place, value)
