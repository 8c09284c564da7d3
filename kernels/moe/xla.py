"""`fxhlo.moe` in plain JAX: rows sorted by expert, a grouped product, the activation, a second grouped product, and rows put back. For every target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..grouped_matmul.xla import product
from ..spec import Operands
from .reference import GATED, PLAIN


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    activation = attributes["activation"]
    if activation not in GATED and activation not in PLAIN:
        return f"{activation} is no activation of experts"
    return None


def lower(
    x: Array,
    w13: Array,
    w2: Array,
    topk_weights: Array,
    topk_ids: Array,
    w13_bias: Array | None = None,
    w2_bias: Array | None = None,
    **attributes: Any,
) -> Array:
    """Operands and result as in `reference.moe`. A weight is read once for every block of rows that chose its expert."""
    return experts(
        lambda sizes: partial(product, sizes=sizes),
        x, w13, w2, topk_weights, topk_ids, w13_bias, w2_bias, **attributes,
    )  # fmt: skip


def experts(
    products: Callable[[Array], Callable[[Array, Array], Array]],
    x: Array,
    w13: Array,
    w2: Array,
    topk_weights: Array,
    topk_ids: Array,
    w13_bias: Array | None = None,
    w2_bias: Array | None = None,
    *,
    activation: str,
    limit: float,
    alpha: float,
    beta: float,
    weight_on_input: bool,
) -> Array:
    """`lower` with another grouped product: products(rows of each expert)(rows sorted by expert, weights) -> float32, where rows past
    the last expert's may be anything. Rows come back by a gather: a TPU's scatter takes one at a time."""
    (tokens, top), count = topk_ids.shape, w13.shape[0]
    ids = topk_ids.reshape(-1)
    ids = jnp.where((ids >= 0) & (ids < count), ids, count)  # rows of no expert come last
    order = jnp.argsort(ids, stable=True)
    expert = ids[order]
    multiply = products(jnp.sum(ids[:, None] == jnp.arange(count, dtype=ids.dtype), 0, dtype=jnp.int32))
    rows = x[order // top]
    if weight_on_input:
        rows = (rows * topk_weights.reshape(-1)[order][:, None]).astype(x.dtype)
    hidden = multiply(rows, w13)
    if w13_bias is not None:
        hidden = hidden + w13_bias[expert].astype(hidden.dtype)  # an index past the last is the last
    inner = activated(hidden, activation, limit, alpha, beta).astype(x.dtype)
    result = multiply(inner, w2)
    if w2_bias is not None:
        result = result + w2_bias[expert].astype(result.dtype)
    result = result[jnp.argsort(order)].reshape(tokens, top, w2.shape[1])
    if not weight_on_input:
        result = result * topk_weights[..., None]
    return jnp.where((ids < count).reshape(tokens, top, 1), result, 0).sum(1).astype(x.dtype)


def activated(hidden: Array, activation: str, limit: float, alpha: float, beta: float) -> Array:
    """As `reference.activated`."""
    if activation.endswith("_no_mul"):
        return _plain(hidden, activation.removesuffix("_no_mul"))
    gate, up = jnp.split(hidden, 2, axis=-1)
    if activation in ("silu", "swigluoai"):
        if activation == "swigluoai":
            gate, up = hidden[..., 0::2], hidden[..., 1::2]
        if limit > 0:
            gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
        return gate * jax.nn.sigmoid(alpha * gate) * (up + beta)
    if activation == "swiglustep":
        gate = jax.nn.silu(gate)
        return jnp.minimum(gate, limit) * jnp.clip(up, -limit, limit) if limit > 0 else gate * up
    if activation == "situ":
        gate = alpha * jnp.tanh(gate / alpha) * jax.nn.sigmoid(gate)
        return gate * (beta * jnp.tanh(up / beta) if beta > 0 else up)
    return _plain(gate, activation) * up


def _plain(values: Array, activation: str) -> Array:
    if activation == "silu":
        return jax.nn.silu(values)
    if activation == "relu2":
        return jnp.square(jax.nn.relu(values))
    return jax.nn.gelu(values, approximate=activation == "gelu_tanh")
