"""`fxhlo.ragged_gated_delta_rule` on TPU: single rows by the Pallas kernel of `fxhlo.ragged_ssd`, tiles of rows as in xla.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from ...runtime.core.targets import Target
from ..ragged_ssd.tpu_step import refused, step
from ..spec import Operands
from . import xla


def supports(operands: Operands, attributes: Mapping[str, Any], target: Target) -> str | None:
    return xla.supports(operands, attributes) or refused(operands.named["state"], target)


def lower(
    q: Array, k: Array, v: Array, g: Array, beta: Array, state: Array, state_slots: Array, seq_lens: Array, query_start_loc: Array,
    *, scale: float, l2norm: bool,
) -> tuple[Array, Array]:  # fmt: skip
    """Operands and results as in reference.py."""
    return xla.lower(
        q, k, v, g, beta, state, state_slots, seq_lens, query_start_loc, scale=scale, l2norm=l2norm, in_place=_corrected
    )


def _corrected(
    state: Array, slots: Array, kinds: Array, q: Array, k: Array, v: Array, g: Array, beta: Array
) -> tuple[Array, Array]:
    """`along_requests`' in_place: rows as of `xla._single`."""
    decay = jnp.exp(g if g.ndim == 3 else jnp.broadcast_to(g[..., None], k.shape))
    rate = beta[..., None]
    return step(state, slots, kinds, q, k, rate * v, decay, rate * k)
