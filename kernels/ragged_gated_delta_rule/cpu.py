"""`fxhlo.ragged_gated_delta_rule` on the CPU: the C++ kernel of runtime/core/native through XLA's FFI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from ...runtime.core import native
from ..ragged_causal_conv1d.cpu import refused, stepped
from ..spec import Operands


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    heads, key_heads = operands.named["v"].shape[1], operands.named["k"].shape[1]
    if heads % key_heads:
        return f"{heads} heads are no multiple of {key_heads} key heads"
    return refused(operands, ("q", "k", "v", "state")) or native.planned()


def lower(
    q: Array, k: Array, v: Array, g: Array, beta: Array, state: Array, state_slots: Array, seq_lens: Array, query_start_loc: Array,
    *, scale: float, l2norm: bool,
) -> tuple[Array, Array]:  # fmt: skip
    """Operands and results as in reference.py; the state is updated in place."""
    call = stepped("fxhlo_ragged_gated_delta_rule", v, state, 5)
    output, updated = call(
        q, k, v, g.astype(jnp.float32), beta.astype(jnp.float32), state, state_slots, seq_lens, query_start_loc,
        scale=np.float32(scale), l2norm=np.int64(l2norm),
    )  # fmt: skip
    return output, updated
