"""`fxhlo.gated_delta_rule` in plain StableHLO: `fxhlo.ragged_gated_delta_rule` with one request."""

from __future__ import annotations

from jax import Array

from ..ragged_gated_delta_rule.xla import lower as ragged
from ..ragged_gated_delta_rule.xla import supports
from ..ragged_selective_scan.xla_requests import alone

__all__ = ["lower", "supports"]


def lower(q: Array, k: Array, v: Array, g: Array, beta: Array, *, layer: str, scale: float, l2norm: bool) -> Array:
    """Operands and result as in `reference.gated_delta_rule`."""
    return ragged(q, k, v, g, beta, *alone(v, *v.shape[1:], k.shape[2]), scale=scale, l2norm=l2norm)[0]
