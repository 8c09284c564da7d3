"""Models as JAX users hold them: flax's nested variables with `apply`, and a registered dataclass that is its own pytree."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import fxhlo
import fxhlo.jax
from fxhlo.lowering.errors import CaptureError


class Mlp:
    """As a flax.linen module: no arrays of its own; `apply` takes its variables, collections of nested dictionaries."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes

    def init(self, key: Any, x: Any) -> dict[str, Any]:
        params, inputs = {}, x.shape[-1]
        for index, size in enumerate(self.sizes):
            key, now = jax.random.split(key)
            params[f"Dense_{index}"] = {"kernel": jax.random.normal(now, (inputs, size)), "bias": jnp.ones(size)}
            inputs = size
        return {"params": params, "batch_stats": {"seen": jnp.zeros((), jnp.int32)}}

    def apply(self, variables: dict[str, Any], x: Any) -> tuple[Any, dict[str, Any]]:
        for layer in variables["params"].values():
            x = fxhlo.jax.linear(x, layer["kernel"].T, layer["bias"])
        return x, {"batch_stats": {"seen": variables["batch_stats"]["seen"] + x.shape[0]}}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Gated:
    """A module that is a pytree itself, as equinox's and flax.nnx's are."""

    norm: jax.Array
    up: jax.Array
    down: jax.Array | None = None

    def __call__(self, x: Any) -> Any:
        x = fxhlo.jax.rms_norm(x, self.norm, 1e-6)
        x = fxhlo.jax.silu_and_mul(x @ self.up)
        return x if self.down is None else x @ self.down


def test_variables_of_flax(tmp_path: Path) -> None:
    model, x = Mlp((8, 4)), jnp.linspace(-1, 1, 6).reshape(2, 3)
    variables = model.init(jax.random.key(0), x)

    def step(params: Any, batch_stats: Any, x: Any) -> tuple[Any, Any]:
        y, updated = model.apply({"params": params, "batch_stats": batch_stats}, x)
        return y, updated["batch_stats"]

    hlo = fxhlo.jax.lower(
        step, variables["params"], variables["batch_stats"], x, weights=("params",), states=("batch_stats",)
    )
    names = [one.name for one in hlo.signature.arguments]
    assert names[:2] == ["params.Dense_0.bias", "params.Dense_0.kernel"]
    assert [one.name for one in hlo.signature.states] == ["batch_stats.seen"]
    hlo.save(tmp_path / "bundle")
    (step,) = fxhlo.load(tmp_path / "bundle", "cpu").values()
    y, seen = step(np.zeros((), np.int32), np.asarray(x))
    expected, _ = model.apply(variables, x)
    np.testing.assert_allclose(np.asarray(y), expected, rtol=1e-5, atol=1e-6)
    assert int(np.asarray(seen)) == 2


@pytest.mark.parametrize("down", [False, True])
def test_a_module_that_is_a_pytree(down: bool) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((6,), (6, 8), (4, 6))]
    model = Gated(*arrays[: 2 + down])
    x = rng.standard_normal((3, 6)).astype(np.float32)
    hlo = fxhlo.jax.lower(lambda model, x: model(x), model, x, weights=("model",))
    names = [one.name for one in hlo.signature.arguments if one.kind == "weight"]
    assert names == ["model.norm", "model.up", *(["model.down"] if down else [])]
    (y,) = hlo.compile()(x)
    np.testing.assert_allclose(np.asarray(y), jax.jit(Gated.__call__)(model, x), rtol=1e-5, atol=1e-6)


def test_a_leaf_that_is_no_array_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"params\.name is 'dense', which is no array"):
        fxhlo.jax.lower(lambda params, x: x, {"name": "dense"}, np.zeros(3, np.float32))


@pytest.mark.parametrize(
    ("function", "count", "names"),
    [
        (functools.partial(lambda x, *, k: x * k, k=2), 1, ["x"]),
        (functools.partial(lambda x, y, z: x + y + z, np.float32(1)), 2, ["y", "z"]),
        (lambda x, *rest: x + sum(rest), 3, ["x", "rest.0", "rest.1"]),
        (lambda kwargs: kwargs + 1, 1, ["kwargs"]),
        (jax.jit(lambda x: x + 1), 1, ["x"]),
    ],
)
def test_arguments_have_the_names_of_their_parameters(function: Any, count: int, names: list[str]) -> None:
    args = [np.full(3, number, np.float32) for number in range(count)]
    hlo = fxhlo.jax.lower(function, *args)
    assert [argument.name for argument in hlo.signature.arguments] == names
    (result,) = hlo.compile()(*args)
    np.testing.assert_allclose(np.from_dlpack(result), function(*args))


@pytest.mark.parametrize(
    ("function", "count", "said"),
    [
        (functools.partial(lambda x, y: x + y, x=1), 1, "too many positional"),
        (functools.partial(lambda x, y: x + y, y=1), 2, "too many positional"),
        (lambda x, y: x + y, 1, "missing a required argument: 'y'"),
        (max, 2, "no signature found"),
        (3, 1, "not a callable"),
    ],
)
def test_arguments_that_the_function_does_not_take(function: Any, count: int, said: str) -> None:
    with pytest.raises(CaptureError, match=f"does not take these {count} arguments by position: .*{said}") as caught:
        fxhlo.jax.lower(function, *[np.ones(3, np.float32)] * count)
    assert "functools.partial" in str(caught.value.next_step)


def test_an_encoder_sees_all_of_its_tokens() -> None:
    """Attention without a cache and without an order, on the CPU as in torch, by flash attention on a TPU."""

    def encode(query: Any, key: Any, value: Any) -> Any:
        return fxhlo.jax.attention(
            query, key, value, layer="", scale=0.125, sliding_window=0, soft_cap=0.0, causal=False
        )

    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((256, 2, 64)).astype(jnp.bfloat16) for _ in range(3)]
    q, k, v = (torch.from_numpy(one.astype(np.float32)).transpose(0, 1) for one in arrays)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(0, 1).numpy()
    hlo = fxhlo.jax.lower(encode, *arrays)
    (mine,) = hlo.compile()(*arrays)
    np.testing.assert_allclose(np.asarray(mine).astype(np.float32), expected, rtol=2e-2, atol=1e-2)
    np.testing.assert_allclose(np.asarray(encode(*arrays), np.float32), expected, rtol=2e-2, atol=1e-2)
    on_tpu = fxhlo.jax.lower(encode, *arrays, target="tpu-v5e").legalized()
    assert [(one.kernel, one.implementation) for one in on_tpu.decisions] == [("fxhlo.attention", "flash")]
    as_default = fxhlo.jax.attention(*arrays, layer="", scale=0.125, sliding_window=0, soft_cap=0.0)
    assert not np.allclose(
        np.asarray(as_default, np.float32)[0], expected[0], atol=0.1
    )  # causal: the first sees itself
