"""Kernels with a state per request on TPU: single rows and tiles of rows in Pallas, in its interpreter on the CPU."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
import torch
from jax.experimental.pallas import tpu as pltpu

from fxhlo.kernels.catalog import kernels
from fxhlo.kernels.ragged_causal_conv1d.cases import Lengths, operands_of, values
from fxhlo.kernels.spec import Operands, TensorSpec
from fxhlo.runtime.core.targets import Target

F32 = np.dtype(np.float32)
ROWS = 80
SHAPES: dict[str, tuple[str, dict[str, tuple[int, ...]], tuple[int, ...], dict[str, Any]]] = {
    "ssd": (
        "ragged_ssd",
        {"x": (ROWS, 16, 8), "dt": (ROWS, 16), "a": (16,), "b": (ROWS, 2, 128), "c": (ROWS, 2, 128), "d": (16,), "dt_bias": (16,)},
        (16, 8, 128), {},
    ),
    "lightning": (
        "ragged_lightning_attention",
        {"q": (ROWS, 2, 128), "k": (ROWS, 2, 128), "v": (ROWS, 2, 128), "slopes": (2,)}, (2, 128, 128), {},
    ),
    "scan": (
        "ragged_selective_scan",
        {"x": (ROWS, 256), "dt": (ROWS, 256), "a": (256, 16), "b": (ROWS, 16), "c": (ROWS, 16), "d": (256,), "dt_bias": (256,)},
        (256, 16), {},
    ),
    "a decay a head": (
        "ragged_gated_delta_rule",
        {"q": (ROWS, 2, 128), "k": (ROWS, 2, 128), "v": (ROWS, 4, 16), "g": (ROWS, 4), "beta": (ROWS, 4)},
        (4, 16, 128), {"scale": 0.1, "l2norm": True},
    ),
    "a decay a channel": (
        "ragged_gated_delta_rule",
        {"q": (ROWS, 3, 128), "k": (ROWS, 3, 128), "v": (ROWS, 3, 16), "g": (ROWS, 3, 128), "beta": (ROWS, 3)},
        (3, 16, 128), {"scale": 0.1, "l2norm": True},
    ),
    "a decay a channel, one head": (
        "ragged_gated_delta_rule",
        {"q": (ROWS, 1, 128), "k": (ROWS, 1, 128), "v": (ROWS, 1, 16), "g": (ROWS, 1, 128), "beta": (ROWS, 1)},
        (1, 16, 128), {"scale": 0.1, "l2norm": True},
    ),
}  # fmt: skip
STEPS: dict[str, Lengths] = {
    "one row of each": ((4, 1), (0, 1), (3, 0), (9, 1)),
    "one row beside more": ((4, 1), (0, 70), (3, 0), (9, 2), (1, 1)),
    "tiles of several requests": ((0, 3), (7, 66), (2, 2), (0, 1), (5, 6)),
}
QUICK = {(name, "tiles of several requests") for name in SHAPES if name != "a decay a channel"}
"""The interpreter's time grows with the heads that have a decay a channel: one of them in `make test`, three in `make conformance`."""


@pytest.mark.parametrize(
    ("name", "lengths", "strict"),
    [
        *(
            pytest.param(
                name,
                STEPS[step],
                False,
                id=f"{name}, {step}",
                marks=() if (name, step) in QUICK else pytest.mark.conformance,
            )
            for name in SHAPES
            for step in STEPS
        ),
        ("ssd", STEPS["one row of each"], True),
    ],
)
def test_it_gives_the_reference(name: str, lengths: Lengths, strict: bool) -> None:
    """Slots of new requests hold NaN, and so do rows of no request."""
    kernel_name, shapes, state, attributes = SHAPES[name]
    kernel = kernels()[f"fxhlo.{kernel_name}"]
    made = dict(values(operands_of(shapes, state, 6, F32, F32), lengths)(np.random.default_rng(0)))
    made["state"][made["state_slots"][1]] = np.nan
    for one in set(shapes) & {"x", "dt", "b", "c", "q", "k", "v", "g", "beta"}:
        made[one][sum(new for _, new in lengths) :] = np.nan
    (pallas,) = (one for one in kernel.implementations if one.name == "pallas")
    specs = Operands.of(made, (TensorSpec(array.shape, array.dtype) for array in made.values()))
    assert pallas.refusal(specs, attributes, Target("tpu-v6e")) is None
    mode = pltpu.InterpretParams(out_of_bounds_reads="uninitialized") if strict else True
    with pltpu.force_tpu_interpret_mode(mode):
        found = jax.jit(lambda given: pallas.lower(**given, **attributes))(made)
    right = kernel.reference(**{one: torch.from_numpy(array) for one, array in made.items()}, **attributes)
    np.testing.assert_allclose(found[0], right[0].numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[1], right[1].numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("state", "dtype", "reason"),
    [
        ((2, 128, 128), "bfloat16", "the state is bfloat16; the kernel takes float32"),
        ((2, 16, 64), "float32", "a state of 16 by 64; the kernel takes multiples of 8 by multiples of 128"),
        ((2, 2048, 8192), "float32", "a block of heads needs 536870912 bytes of VMEM"),
    ],
)
def test_what_it_does_not_take_has_a_reason(state: tuple[int, ...], dtype: str, reason: str) -> None:
    shapes = {"q": (4, 2, state[2]), "k": (4, 2, state[2]), "v": (4, 2, state[1]), "slopes": (2,)}
    operands = operands_of(shapes, state, 3, F32, np.dtype(dtype))
    specs = Operands.of(operands, operands.values())
    (pallas,) = (one for one in kernels()["fxhlo.ragged_lightning_attention"].implementations if one.name == "pallas")
    assert pallas.refusal(specs, {}, Target("tpu-v6e")) == reason
