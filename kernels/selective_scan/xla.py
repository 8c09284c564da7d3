"""`fxhlo.selective_scan` in plain StableHLO: `fxhlo.ragged_selective_scan` with one request."""

from __future__ import annotations

from jax import Array

from ..ragged_selective_scan.xla import lower as ragged
from ..ragged_selective_scan.xla import supports
from ..ragged_selective_scan.xla_requests import alone

__all__ = ["lower", "supports"]


def lower(
    x: Array, dt: Array, a: Array, b: Array, c: Array, d: Array, dt_bias: Array | None = None, *, layer: str
) -> Array:
    """Operands and result as in `reference.selective_scan`."""
    state, state_slots, seq_lens, query_start_loc = alone(x, *a.shape)
    step = {"state_slots": state_slots, "seq_lens": seq_lens, "query_start_loc": query_start_loc}
    return ragged(x, dt, a, b, c, d, dt_bias, state=state, **step)[0]
