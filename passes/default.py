"""The order of the passes, a reason per line. Order lives here and nowhere else."""

from __future__ import annotations

from .base import Pass
from .fx.canonicalize import Canonicalize
from .fx.item_numbers import ItemNumbers
from .fx.random_key import RandomKey


def default_passes() -> tuple[Pass, ...]:
    """For any model that a user exports."""
    return (
        ItemNumbers(),  # first: later passes see tensors in place of scalars
        RandomKey(),  # before CSE: two equal draws are two computations
        Canonicalize(),  # no-ops, CSE and DCE before emission
    )
