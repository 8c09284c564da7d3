"""The order of the passes, a reason per line. Order lives here and nowhere else."""

from __future__ import annotations

from .base import Pass
from .fx.canonicalize import Canonicalize
from .fx.item_numbers import ItemNumbers
from .fx.random_key import RandomKey


def default_passes() -> tuple[Pass, ...]:
    """For any model that a user exports."""
    return (
        ItemNumbers(),  # first: what was a number is a tensor for all that follows
        RandomKey(),  # before equal computations are shared: two draws are never the same
        Canonicalize(),  # no-ops, repeated computations and dead code go before anything looks for patterns
    )
