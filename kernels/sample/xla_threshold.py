"""Bisection for the thresholds of top-k and top-p in `fxhlo.sample`, shared by its JAX implementations.

Comes in: an implementation's passes over the vocabulary (`Passes`). Goes out: a threshold per row. Guaranteed: integer arithmetic
only, so that every implementation returns the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array, lax

from .xla_arithmetic import middle_bits

FIRST_STEPS = 12  # steps of bisection before the bracket is tightened to values that occur


@dataclass(frozen=True)
class Passes:
    """Passes over a row's int32 values; arguments and results have one number per row.

    mass(t): total weight of the tokens with value >= t. lowest(low): the smallest value >= low. highest(high): the largest
    value < high. some(rows): scalar, whether any row is true.
    """

    mass: Callable[[Array], Array]
    lowest: Callable[[Array], Array]
    highest: Callable[[Array], Array]
    some: Callable[[Array], Array]


def find_threshold(
    passes: Passes,
    lightest: Callable[[Array], Array | int],
    target: Array,
    low: Array,
    high: Array,
    active: Array,
    middle: Callable[[Array, Array], Array],
) -> Array:
    """Largest t in [low, high) such that the tokens with value >= t weigh at least target, or an equivalent t.

    lightest(low): the smallest weight of a token whose value is at least low. Active rows whose weight above low is too small return
    low; the result of inactive rows is arbitrary. `middle(low, high)` guesses the next split.
    """

    def is_open(state: tuple[Array, ...]) -> Array:
        """Whether some row is undecided: the weight above low is not exactly the target, and [low, high) has more than one token."""
        low, high, above_low, above_high = state
        several = (above_low - above_high) >> 1 >= lightest(low)
        return passes.some(active & (low + 1 < high) & (above_low > target) & several)

    def divide(state: tuple[Array, ...], t: Array) -> tuple[Array, ...]:
        low, high, above_low, above_high = state
        above = passes.mass(t)
        enough = above >= target
        return (
            jnp.where(enough, t, low),
            jnp.where(enough, high, t),
            jnp.where(enough, above, above_low),
            jnp.where(enough, above_high, above),
        )

    def guess(state: tuple[Array, ...]) -> Array:
        low, high = state[:2]
        t = jnp.maximum(middle(low, high), jnp.minimum(low + 1, high))
        return jnp.minimum(t, jnp.maximum(high - 1, low))

    def tighten(state: tuple[Array, ...]) -> tuple[Array, ...]:
        low, high, *masses = state
        lowest, highest = passes.lowest(low), passes.highest(high)
        return jnp.where(active, lowest, low), jnp.where(active, highest + 1, high), *masses

    state: tuple[Array, ...] = (low, high, passes.mass(low), jnp.zeros_like(low))
    _, state = lax.while_loop(
        lambda carry: (carry[0] < FIRST_STEPS) & is_open(carry[1]),
        lambda carry: (carry[0] + 1, divide(carry[1], guess(carry[1]))),
        (jnp.int32(0), state),
    )
    state = lax.cond(is_open(state), tighten, lambda state: state, state)
    state = lax.while_loop(is_open, lambda s: divide(s, middle_bits(s[0], s[1])), state)
    return state[0]
