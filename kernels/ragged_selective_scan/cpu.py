"""`fxhlo.ragged_selective_scan` on the CPU: the C++ kernel of runtime/core/native through XLA's FFI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from ...runtime.core import native
from ..ragged_causal_conv1d.cpu import refused, stepped
from ..spec import Operands
from .xla import softened


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    return refused(operands, ("x", "b", "c", "state")) or native.planned()


def lower(
    x: Array, dt: Array, a: Array, b: Array, c: Array, d: Array, dt_bias: Array | None = None, *, state: Array, state_slots: Array,
    seq_lens: Array, query_start_loc: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """Operands and results as in reference.py; the state is updated in place."""
    step, a, d = softened(dt, dt_bias), a.astype(jnp.float32), d.astype(jnp.float32)
    call = stepped("fxhlo_ragged_selective_scan", x, state, 6)
    output, updated = call(x, step, a, b, c, d, state, state_slots, seq_lens, query_start_loc)
    return output, updated
