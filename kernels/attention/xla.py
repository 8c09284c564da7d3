"""`fxhlo.attention` in plain StableHLO, for every target: two matmuls and a softmax, without repeating keys for grouped heads.

The softmax is a maximum and a sum over the scores, and an elementwise function that fuses into the second matmul, as in
lowering/decompositions/attention.py, so that a compiler writes the scores to memory only once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.lax import Precision

from ..spec import Operands


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    heads, kv_heads = operands[0].shape[1], operands[1].shape[1]
    return f"{heads} query heads are no multiple of {kv_heads} KV heads" if heads % kv_heads else None


def lower(
    query: Array, key: Array, value: Array, sinks: Array | None = None, alibi_slopes: Array | None = None, *,
    layer: str, scale: float, sliding_window: int, soft_cap: float, causal: bool = True, chunk: int = 0,
) -> Array:  # fmt: skip
    """Operands and result as in `reference.attention`."""
    (tokens, heads, size), (keys, kv_heads, _) = query.shape, key.shape
    wide = jnp.promote_types(query.dtype, jnp.float32)
    grouped = query.astype(wide).reshape(tokens, kv_heads, heads // kv_heads, size)
    scores = jnp.einsum("ihgd,jhd->hgij", grouped, key.astype(wide), precision=Precision.HIGHEST) * scale
    at, key_at = jnp.arange(tokens)[:, None], jnp.arange(keys)[None, :]
    distance = key_at - at
    if soft_cap > 0:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    if alibi_slopes is not None and alibi_slopes.size:
        scores = scores - alibi_slopes.astype(wide).reshape(kv_heads, -1, 1, 1) * jnp.abs(distance)
    masked = causal or sliding_window > 0 or chunk > 0
    if masked:
        seen = distance <= 0 if causal else jnp.ones_like(distance, bool)
        seen = seen & (jnp.abs(distance) < sliding_window) if sliding_window > 0 else seen
        seen = seen & (key_at // chunk == at // chunk) if chunk > 0 else seen
        scores = jnp.where(seen, scores, -jnp.inf)
    highest = jnp.max(scores, -1, keepdims=True)
    sink = None
    if sinks is not None and sinks.size:
        sink = sinks.astype(wide).reshape(kv_heads, -1, 1, 1)
        highest = jnp.maximum(highest, sink)
    if masked:
        highest = jnp.where(highest == -jnp.inf, 0.0, highest)
    powers = jnp.exp(scores - highest)
    total = jnp.sum(powers, -1, keepdims=True) + (0.0 if sink is None else jnp.exp(sink - highest))
    weights = powers / (jnp.where(total == 0.0, 1.0, total) if masked else total)
    output = jnp.einsum("hgij,jhd->ihgd", weights, value.astype(wide), precision=Precision.HIGHEST)
    return output.reshape(query.shape).astype(query.dtype)
