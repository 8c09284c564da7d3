"""`fxhlo.ragged_lightning_attention` in plain StableHLO: the attention of `fxhlo.ragged_ssd` with a fixed decay a head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from ..ragged_selective_scan.xla_requests import InPlace, InTiles
from ..ragged_ssd.xla import decayed_attention
from ..spec import Operands


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    return None


def lower(
    q: Array, k: Array, v: Array, slopes: Array, state: Array, state_slots: Array, seq_lens: Array, query_start_loc: Array,
    *, in_place: InPlace | None = None, in_tiles: InTiles | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """Operands and results as in reference.py. in_place, in_tiles: see `along_requests`."""
    decay = jnp.broadcast_to(-slopes.astype(jnp.float32), v.shape[:2])
    batch = (state, state_slots, seq_lens, query_start_loc)
    output, state = decayed_attention(q, k, v, decay, *batch, in_place=in_place, in_tiles=in_tiles)
    return output.astype(v.dtype), state
