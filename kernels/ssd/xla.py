"""`fxhlo.ssd` in plain StableHLO: `fxhlo.ragged_ssd` with one request."""

from __future__ import annotations

from jax import Array

from ..ragged_selective_scan.xla_requests import alone
from ..ragged_ssd.xla import lower as ragged
from ..ragged_ssd.xla import supports

__all__ = ["lower", "supports"]


def lower(x: Array, dt: Array, a: Array, b: Array, c: Array, d: Array, dt_bias: Array, *, layer: str) -> Array:
    """Operands and result as in `reference.ssd`."""
    return ragged(x, dt, a, b, c, d, dt_bias, *alone(x, *x.shape[1:], b.shape[2]))[0]
