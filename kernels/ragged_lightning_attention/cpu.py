"""`fxhlo.ragged_lightning_attention` on the CPU: the C++ kernel of runtime/core/native through XLA's FFI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from ...runtime.core import native
from ..ragged_causal_conv1d.cpu import refused, stepped
from ..spec import Operands


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    return refused(operands, ("q", "k", "v", "state")) or native.planned()


def lower(
    q: Array, k: Array, v: Array, slopes: Array, state: Array, state_slots: Array, seq_lens: Array, query_start_loc: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """Operands and results as in reference.py; the state is updated in place."""
    rate = jnp.ones(v.shape[:2], jnp.float32)
    decay = jnp.broadcast_to(jnp.exp(-slopes.astype(jnp.float32)), v.shape[:2])
    call = stepped("fxhlo_ragged_decayed_attention", v, state, 6)
    absent = jnp.zeros((0,), jnp.float32)
    output, updated = call(q, k, v, rate, decay, absent, state, state_slots, seq_lens, query_start_loc)
    return output, updated
