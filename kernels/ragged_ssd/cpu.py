"""`fxhlo.ragged_ssd` on the CPU: the C++ kernel of runtime/core/native through XLA's FFI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from ...runtime.core import native
from ..ragged_causal_conv1d.cpu import refused, stepped
from ..ragged_selective_scan.xla import softened
from ..spec import Operands


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    heads, groups = operands.named["x"].shape[1], operands.named["b"].shape[1]
    if heads % groups:
        return f"{heads} heads are no multiple of {groups} groups"
    return refused(operands, ("x", "b", "c", "state")) or native.planned()


def lower(
    x: Array, dt: Array, a: Array, b: Array, c: Array, d: Array, dt_bias: Array, state: Array, state_slots: Array,
    seq_lens: Array, query_start_loc: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """Operands and results as in reference.py; the state is updated in place."""
    step = softened(dt, dt_bias)
    decay = jnp.exp(step * a.astype(jnp.float32))
    call = stepped("fxhlo_ragged_decayed_attention", x, state, 6)
    output, updated = call(c, b, x, step, decay, d.astype(jnp.float32), state, state_slots, seq_lens, query_start_loc)
    return output, updated
