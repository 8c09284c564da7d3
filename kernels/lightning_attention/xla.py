"""`fxhlo.lightning_attention` in plain StableHLO: `fxhlo.ragged_lightning_attention` with one request."""

from __future__ import annotations

from jax import Array

from ..ragged_lightning_attention.xla import lower as ragged
from ..ragged_lightning_attention.xla import supports
from ..ragged_selective_scan.xla_requests import alone

__all__ = ["lower", "supports"]


def lower(q: Array, k: Array, v: Array, slopes: Array, *, layer: str) -> Array:
    """Operands and result as in `reference.lightning_attention`."""
    return ragged(q, k, v, slopes, *alone(v, *v.shape[1:], k.shape[2]))[0]
