"""`fxhlo.ragged_gated_delta_rule` on TPU: single rows and tiles of rows by the Pallas kernels of `fxhlo.ragged_ssd`, with a rule of its own
for tiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from ...runtime.core.targets import Target
from ..ragged_selective_scan.xla_requests import InTiles, Rows, Step
from ..ragged_ssd.tpu_step import refused, step
from ..ragged_ssd.tpu_tiles import along_tiles, shared_by
from ..spec import Operands
from . import xla
from .tpu_rule import corrected, corrected_by_channel

WIDTH = 64
"""Rows of a tile."""


def supports(operands: Operands, attributes: Mapping[str, Any], target: Target) -> str | None:
    return xla.supports(operands, attributes) or refused(operands.named["state"], target)


def lower(
    q: Array, k: Array, v: Array, g: Array, beta: Array, state: Array, state_slots: Array, seq_lens: Array, query_start_loc: Array,
    *, scale: float, l2norm: bool,
) -> tuple[Array, Array]:  # fmt: skip
    """Operands and results as in reference.py."""
    tiles = tiles_of(v.shape[1], k.shape[1])
    batch = (state, state_slots, seq_lens, query_start_loc)
    return xla.lower(q, k, v, g, beta, *batch, scale=scale, l2norm=l2norm, in_place=_corrected, in_tiles=tiles)


def tiles_of(heads: int, key_heads: int) -> InTiles | None:
    """`along_requests`' in_tiles; None where a block of heads has parts of groups."""
    return None if shared_by(heads, key_heads) is None else _tiles


def _tiles(step: Step, chosen: Array, state: Array, rows: Rows) -> tuple[Array, Array]:
    q, k, v, g, beta = rows
    if g.ndim == 3:
        return along_tiles(corrected_by_channel, WIDTH, q, k, (v, g), (beta,), state, step, chosen)
    return along_tiles(corrected, WIDTH, q, k, (v,), (g, beta), state, step, chosen)


def _corrected(
    state: Array, slots: Array, kinds: Array, q: Array, k: Array, v: Array, g: Array, beta: Array
) -> tuple[Array, Array]:
    """`along_requests`' in_place: rows as of `xla._single`."""
    q, k = xla.by_head(q, k, v)
    decay = jnp.exp(g if g.ndim == 3 else jnp.broadcast_to(g[..., None], k.shape))
    rate = beta[..., None]
    return step(state, slots, kinds, q, k, rate * v, decay, rate * k)
