"""The order of the passes, a reason per line. Order lives here and nowhere else."""

from __future__ import annotations

from .base import Pass
from .fx.canonicalize import Canonicalize


def default_passes() -> tuple[Pass, ...]:
    """For any model that a user exports."""
    return (
        Canonicalize(),  # no-ops, repeated computations and dead code go before anything looks for patterns
    )
