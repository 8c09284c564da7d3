"""`fxhlo.copy_row` in JAX: a slice and its update, which XLA does in place where arrays of the state's dtype are not converted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jax import Array, lax

from ..spec import Operands


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    return None


def lower(state: Array, source: Array, destination: Array) -> Array:
    """state [R, ...], source and destination [] -> [R, ...]."""
    row = lax.dynamic_slice_in_dim(state, source, 1)
    return lax.dynamic_update_slice_in_dim(state, row, destination, 0)
