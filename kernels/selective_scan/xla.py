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
    state, slots, lengths, starts = alone(x, *a.shape)
    given = (x, dt, a, b, c, d, dt_bias)
    return ragged(*given, state=state, state_slots=slots, seq_lens=lengths, query_start_loc=starts)[0]
