"""`fxhlo.varlen_attention` on TPU: JAX's Pallas flash attention with a segment per sequence, as kernels/attention/tpu.py uses it.

Rows that belong to no sequence, and padding up to whole blocks, are a segment of their own, whose rows are zeroed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from ..attention.tpu import flash, refusal_of_sizes
from ..spec import Operands


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    if "sinks" in operands.named and operands.named["sinks"].shape[0]:
        return "it has sinks"
    if attributes["sliding_window"] or attributes["soft_cap"]:
        return "it has a sliding window or a soft cap"
    return refusal_of_sizes(operands)


def lower(
    query: Array, key: Array, value: Array, query_start_loc: Array, sinks: Array | None = None, *, scale: float,
    sliding_window: int, soft_cap: float, causal: bool,
) -> Array:  # fmt: skip
    """Operands and result as in reference.py."""
    at = jnp.arange(query.shape[0])
    segment = (at[:, None] >= query_start_loc[None, 1:]).sum(axis=1).astype(jnp.int32)
    alive = (at < query_start_loc[-1])[:, None, None]
    value = jnp.where(alive, value, 0)  # rows of padding may hold anything, even NaN
    key = jnp.where(alive, key, 0)
    output = flash(query, key, value, segment, segment, scale=scale, causal=causal)
    return jnp.where(alive, output, 0)
