"""`fxhlo.ragged_lightning_attention` on TPU: by the Pallas kernels of `fxhlo.ragged_ssd`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jax import Array

from ...runtime.core.targets import Target
from ..ragged_ssd.tpu import decayed, tiles_of
from ..ragged_ssd.tpu_step import refused
from ..spec import Operands
from . import xla


def supports(operands: Operands, attributes: Mapping[str, Any], target: Target) -> str | None:
    return refused(operands.named["state"], target)


def lower(
    q: Array, k: Array, v: Array, slopes: Array, state: Array, state_slots: Array, seq_lens: Array, query_start_loc: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """Operands and results as in reference.py."""
    tiles = tiles_of(v.shape[1], k.shape[1])
    return xla.lower(q, k, v, slopes, state, state_slots, seq_lens, query_start_loc, in_place=decayed, in_tiles=tiles)
