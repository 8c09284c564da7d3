"""The native `fxhlo.moe`: against the reference, a row's bits in any batch, and which weights it reads."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import torch

from fxhlo.kernels.moe import KERNEL
from fxhlo.kernels.moe.cases import OPENAI, SILU, Mixture
from fxhlo.kernels.moe.reference import GATED, PLAIN
from fxhlo.kernels.spec import Operands, TensorSpec
from fxhlo.runtime.core import native
from fxhlo.runtime.core.targets import Target

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))

F32, I32 = np.dtype(np.float32), np.int32
DTYPES = {"float32": F32, "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
TOLERANCE = {"float32": 1e-5, "bfloat16": 2.0**-6, "float16": 2.0**-9}


def tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def run(operands: Mapping[str, np.ndarray], **attributes: Any) -> np.ndarray:
    (implementation,) = (one for one in KERNEL.implementations if one.name == "native")
    given = Operands.of(operands, (TensorSpec(array.shape, array.dtype) for array in operands.values()))
    assert implementation.refusal(given, attributes, Target("cpu")) is None
    return np.asarray(jax.jit(partial(implementation.lower, **attributes))(**operands))


def expected(operands: Mapping[str, np.ndarray], **attributes: Any) -> np.ndarray:
    return KERNEL.reference(**{name: tensor(array) for name, array in operands.items()}, **attributes).float().numpy()


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint8)


def weight_bytes() -> int:
    """Read since the process began."""
    count = ctypes.CDLL(str(native.library())).fxhlo_moe_weight_bytes
    count.restype = ctypes.c_int64
    return int(count())


# ---- the reference ------------------------------------------------------------------------------------------------

SHAPES = {
    "one row": (1, Mixture(5, 3, 64, 40)),
    "rows of odd sizes": (23, Mixture(7, 2, 65, 47)),
    "biases": (23, Mixture(4, 2, 33, 70, biases=True)),
    "many rows of an expert": (300, Mixture(2, 1, 24, 17, biases=True)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
    "attributes", [SILU, OPENAI, SILU | {"weight_on_input": True}], ids=("silu", "openai", "input")
)
def test_shapes(name: str, attributes: Mapping[str, Any], dtype: str) -> None:
    rows, mixture = SHAPES[name]
    operands = dict(mixture.values(rows, DTYPES[dtype])(np.random.default_rng(0)))
    found = run(operands, **attributes)
    assert found.dtype == DTYPES[dtype]
    np.testing.assert_allclose(
        found.astype(F32), expected(operands, **attributes), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize("limit", [0.0, 0.5])
@pytest.mark.parametrize("activation", [*GATED, *PLAIN])
def test_activations(activation: str, limit: float) -> None:
    """Of values from 1e-5 to 1e3, where a form that cancels would show."""
    mixture = Mixture(2, 1, 16, 32, activation in GATED)
    operands = dict(mixture.values(40, F32)(np.random.default_rng(1)))
    operands["x"] *= np.logspace(-5, 3, 40, dtype=F32)[:, None]
    operands["topk_ids"][:] = np.arange(40, dtype=I32)[:, None] % 2
    attributes = {"activation": activation, "limit": limit, "alpha": 1.3, "beta": 0.75, "weight_on_input": False}
    found, right = run(operands, **attributes), expected(operands, **attributes)
    size = np.abs(right).max(1, keepdims=True)
    assert (np.abs(found - right) <= 2e-5 * size).all()


@pytest.mark.parametrize("activation", [*GATED, *PLAIN])
def test_what_is_no_number_stays_in_its_row(activation: str) -> None:
    operands = dict(Mixture(3, 2, 16, 16, activation in GATED).values(9, F32)(np.random.default_rng(2)))
    attributes = {"activation": activation, "limit": 0.5, "alpha": 1.3, "beta": 0.75, "weight_on_input": False}
    clean = run(operands, **attributes)
    operands["topk_ids"][4] = 0, 1
    operands["x"][4, 3] = np.nan
    found, others = run(operands, **attributes), [0, 1, 2, 3, 5, 6, 7, 8]
    assert np.isnan(found[4]).all()
    np.testing.assert_array_equal(bits(found[others]), bits(clean[others]))


# ---- a row in any batch -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_in_any_batch(dtype: str) -> None:
    operands = dict(Mixture(6, 3, 72, 56, biases=True).values(310, DTYPES[dtype])(np.random.default_rng(3)))
    whole = run(operands, **SILU)
    for rows in (slice(0, 1), slice(309, 310), slice(4, 12), slice(100, 133), slice(0, 310, 2), slice(None, None, -1)):
        given = {name: np.array(operands[name][rows]) for name in ("x", "topk_weights", "topk_ids")}
        np.testing.assert_array_equal(bits(run(operands | given, **SILU)), bits(whole[rows]))


# ---- which experts are read ---------------------------------------------------------------------------------------

EXPERTS = 64
CHOICES = {
    "each row another": np.arange(8, dtype=I32)[:, None] * 7 + 3,
    "all rows one expert": np.full((8, 1), 5, I32),
    "all rows the same experts": np.tile(np.array([[9, 2, 60, 63, 0, 31, 32, 17]], I32), (8, 1)),
    "experts of other devices": np.array([[-1, 3], [64, 3], [2**31 - 1, 7], [-(2**31), 63]], I32),
    "nobody": np.full((8, 2), -1, I32),
}


@pytest.mark.parametrize("name", CHOICES)
def test_each_weight_that_a_row_chose_is_read_once_and_no_other(name: str) -> None:
    ids, mixture = CHOICES[name], Mixture(EXPERTS, CHOICES[name].shape[1], 48, 40)
    operands = dict(mixture.values(ids.shape[0], DTYPES["bfloat16"])(np.random.default_rng(4))) | {"topk_ids": ids}
    chosen = np.intersect1d(ids, np.arange(EXPERTS))
    others = np.setdiff1d(np.arange(EXPERTS), chosen)
    right = expected(operands, **SILU)
    for weight in ("w13", "w2"):
        operands[weight][others] = np.nan
    before = weight_bytes()
    found = run(operands, **SILU)
    assert weight_bytes() - before == len(chosen) * 3 * 48 * 40 * 2
    np.testing.assert_allclose(found.astype(F32), right, rtol=2.0**-6, atol=2.0**-6)
    np.testing.assert_array_equal(right[~np.isin(ids, chosen).any(1)], 0)


PROTECTED = """
import ctypes, mmap, sys
import jax, numpy as np, torch
from fxhlo.kernels.moe import KERNEL
from fxhlo.kernels.moe.cases import SILU
from fxhlo.runtime.core import native

native.register()
E, H, I = 64, 128, 64
libc = ctypes.CDLL(None, use_errno=True)

def weight(rows, columns):
    size = E * rows * columns * 2
    values = torch.frombuffer(mmap.mmap(-1, size), dtype=torch.bfloat16).view(E, rows, columns)
    values.copy_(torch.randn(values.shape) / columns**0.5)
    array = jax.dlpack.from_dlpack(values)
    assert array.unsafe_buffer_pointer() == values.data_ptr()
    return values, array

def protect(values, experts, access):
    size = values[0].numel() * 2
    assert size % mmap.PAGESIZE == 0
    for expert in experts:
        assert libc.mprotect(ctypes.c_void_p(values.data_ptr() + expert * size), ctypes.c_size_t(size), access) == 0

torch.manual_seed(0)
kept, arrays = zip(weight(2 * I, H), weight(H, I))
x = np.random.default_rng(0).standard_normal((8, H)).astype(arrays[0].dtype)
ids = (np.arange(8, dtype=np.int32)[:, None] * 7 + 3)
weights = np.ones((8, 1), np.float32)
(implementation,) = (one for one in KERNEL.implementations if one.name == "native")
call = jax.jit(lambda *operands: implementation.lower(*operands, **SILU))
before = np.asarray(call(x, *arrays, weights, ids))
for values in kept:
    protect(values, sorted(set(range(E)) - set(ids.ravel().tolist())), 0)
after = np.asarray(call(x, *arrays, weights, ids))
assert before.tobytes() == after.tobytes()
print("no other expert was read", flush=True)
jax.block_until_ready(call(x, *arrays, weights, ids + 1))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is protected by Linux's mprotect")
def test_the_memory_of_an_expert_that_nobody_chose_is_not_touched() -> None:
    """It cannot be read without ending the process, which the second call shows."""
    done = subprocess.run([sys.executable, "-P", "-c", PROTECTED], capture_output=True, text=True, timeout=300)
    assert done.stdout == "no other expert was read\n", done.stderr
    assert done.returncode == -signal.SIGSEGV


@pytest.mark.parametrize(("rows", "experts", "top", "hidden", "inner"), [
    (0, 3, 2, 16, 8), (4, 3, 0, 16, 8), (4, 0, 2, 16, 8), (4, 3, 2, 16, 0), (4, 3, 2, 0, 8),
])  # fmt: skip
def test_nothing(rows: int, experts: int, top: int, hidden: int, inner: int) -> None:
    for dtype in (F32, DTYPES["bfloat16"]):
        operands = {
            "x": np.ones((rows, hidden), dtype),
            "w13": np.ones((experts, 2 * inner, hidden), dtype),
            "w2": np.ones((experts, hidden, inner), dtype),
            "topk_weights": np.ones((rows, top), F32),
            "topk_ids": np.tile(np.arange(top, dtype=I32), (rows, 1)),
        }
        np.testing.assert_array_equal(run(operands, **SILU).astype(F32), np.zeros((rows, hidden)))


# ---- the door -----------------------------------------------------------------------------------------------------


def test_the_error_says_what_does_not_fit() -> None:
    operands = dict(Mixture(4, 2, 16, 8).values(3, F32)(np.random.default_rng(0)))
    (implementation,) = (one for one in KERNEL.implementations if one.name == "native")

    def call(**changed: Any) -> None:
        given = operands | {name: value for name, value in changed.items() if name in operands or "bias" in name}
        attributes = SILU | {name: value for name, value in changed.items() if name not in given}
        jax.block_until_ready(jax.jit(partial(implementation.lower, **attributes))(**given))

    for changed, message in (
        ({"w13": operands["w13"][:3]}, r"w13 is float32 \[3, 16, 16\], not float32 \[4, 16, 16\]"),
        ({"activation": "relu2_no_mul"}, r"w13 is float32 \[4, 16, 16\], not float32 \[4, 8, 16\]"),
        ({"activation": "swigluoai_no_mul"}, "activation is swigluoai_no_mul, which no expert has"),
        ({"topk_ids": operands["topk_ids"][:, :1]}, r"topk_weights is float32 \[3, 2\], not float32 \[3, 1\]"),
        ({"w2_bias": np.zeros((4, 15), F32)}, r"w2_bias is float32 \[4, 15\], not float32 \[4, 16\]"),
    ):
        with pytest.raises(Exception, match=f"fxhlo_moe: {message}"):
            call(**changed)


def test_what_is_not_supported_has_a_reason() -> None:
    (implementation,) = (one for one in KERNEL.implementations if one.name == "native")
    specs = Mixture(4, 2, 16, 8, biases=True).specs(3, F32)

    def refusal(specs: Mapping[str, TensorSpec], **attributes: Any) -> str | None:
        return implementation.refusal(Operands.of(specs, specs.values()), SILU | attributes, Target("cpu"))

    assert refusal(specs) is None
    wide = dict(specs) | {"w2_bias": TensorSpec((4, 16), DTYPES["bfloat16"])}
    assert "bfloat16, float32; the native kernel takes" in str(refusal(wide))
    assert "float64" in str(refusal({name: TensorSpec(one.shape, np.dtype("float64")) for name, one in specs.items()}))
    assert refusal(specs, activation="swish") == "swish is no activation of experts"
