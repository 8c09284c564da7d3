"""`fxhlo.ragged_ssd` on TPU: single rows by a Pallas kernel that updates the states where they lie, tiles of rows as in xla.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from ...runtime.core.targets import Target
from ..spec import Operands
from . import xla
from .tpu_step import refused, step


def supports(operands: Operands, attributes: Mapping[str, Any], target: Target) -> str | None:
    return xla.supports(operands, attributes) or refused(operands.named["state"], target)


def decayed(
    state: Array, slots: Array, kinds: Array, queries: Array, keys: Array, values: Array, decay: Array
) -> tuple[Array, Array]:
    """`along_requests`' in_place for the rows of `decayed_attention`."""
    shape = (*values.shape[:2], keys.shape[2])
    queries, keys = (jnp.repeat(one, shape[1] // one.shape[1], axis=1) for one in (queries, keys))
    return step(state, slots, kinds, queries, keys, values, jnp.broadcast_to(jnp.exp(decay)[..., None], shape), None)


def lower(
    x: Array, dt: Array, a: Array, b: Array, c: Array, d: Array, dt_bias: Array, state: Array, state_slots: Array,
    seq_lens: Array, query_start_loc: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """Operands and results as in reference.py."""
    return xla.lower(x, dt, a, b, c, d, dt_bias, state, state_slots, seq_lens, query_start_loc, in_place=decayed)
