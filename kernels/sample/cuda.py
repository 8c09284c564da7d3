"""`fxhlo.sample` in Pallas for CUDA: a program a row, which passes over the vocabulary as often as the row's filters need.

Returns the tokens of `reference.py`, bit for bit; see there for the semantics. Thresholds are found by bisection as in xla.py. One kernel does all of it,
where XLA returns to the host for each step of a bisection. XLA divides by the temperature: Triton's division is not rounded correctly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from ...runtime.core.plugins import without_triton
from ..spec import Operands
from . import xla
from .reference import EPSILON, FILTERED, HORIZON, LOG2_E, SMALLEST_NORMAL, SUM_BITS, WEIGHT_BITS
from .xla_arithmetic import (
    halfway,
    least_weight,
    log2_exponential,
    octaves,
    order_of,
    product,
    scaled_target,
    threefry,
    unordered,
    weights_of,
)
from .xla_threshold import Passes, find_threshold

CHUNK = 2048
"""Tokens of a step of a pass."""
LOWEST, HIGHEST = -(2**31), 2**31 - 1


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    return xla.supports(operands, attributes) or without_triton()


def lower(
    logits: Array, temperature: Array, top_k: Array, top_p: Array, min_p: Array, seeds: Array, steps: Array
) -> Array:
    """Operands and result as in `reference.sample`."""
    rows = logits.shape[0]
    random = temperature >= EPSILON
    y = xla.finite(xla.cleaned(logits) / jnp.where(random, temperature, 1.0)[:, None])
    call = pl.pallas_call(
        _kernel,
        grid=(rows,),
        out_shape=jax.ShapeDtypeStruct((rows,), jnp.int32),
        compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=2),
        name="fxhlo_sample",
    )
    return call(logits, order_of(y), temperature, top_k, top_p, min_p, seeds, steps)


def _kernel(
    logits: Any, images: Any, temperature: Any, top_k: Any, top_p: Any, min_p: Any, seeds: Any, steps: Any, tokens: Any
) -> None:  # fmt: skip
    """images [R, V]: `order_of` the logits divided by the temperature."""
    row, size = pl.program_id(0), logits.shape[1]
    best, greedy = _first(_Pass(logits, row, -jnp.inf), _cleaned, size)
    random = (temperature[row] >= EPSILON) & (best > -jnp.inf)

    def draw() -> Array:
        images_of = _Pass(images, row, LOWEST)
        best_y = unordered(images_of.fold(lambda image, _: image, jnp.maximum, LOWEST, jnp.max))
        keep = _kept(images_of, best_y, top_k[row], top_p[row], min_p[row], size)
        key, step = (seeds[row, 0], seeds[row, 1]), steps[row]

        def score(image: Array, token: Array) -> Array:
            z = jnp.where(keep(image), _distance(best_y, image), FILTERED)
            score = z + log2_exponential(threefry(key, (jnp.full_like(token, step), token)))
            return jnp.where(token < size, -score, -jnp.inf)

        return _first(images_of, score, size)[1]

    tokens[row] = lax.cond(random, draw, lambda: greedy)


class _Pass:
    """Passes over a row of [R, V] in chunks; past the end the row has the number `outside`."""

    def __init__(self, ref: Any, row: Array, outside: float) -> None:
        self.ref, self.row, self.outside, self.size = ref, row, outside, ref.shape[1]

    def chunks(self, body: Callable[[Array, Array, Any], Any], state: Any) -> Any:
        """Folds body(numbers, tokens, state)."""

        def step(index: Array, state: Any) -> Any:
            token = index * CHUNK + lax.iota(jnp.int32, CHUNK)
            numbers = plgpu.load(self.ref.at[self.row, token], mask=token < self.size, other=self.outside)
            return body(numbers, token, state)

        return lax.fori_loop(0, pl.cdiv(self.size, CHUNK), step, state)

    def fold(
        self, term: Callable[[Array, Array], Array], combine: Callable, initial: int, reduce: Callable[[Array], Array]
    ) -> Array:
        """Reduces term(numbers, tokens), int32, to one number; `combine` is the binary form of `reduce`."""
        start = jnp.full((CHUNK,), initial, jnp.int32)
        return reduce(self.chunks(lambda numbers, token, state: combine(state, term(numbers, token)), start))


def _cleaned(x: Array, token: Array) -> Array:
    """Logits in float32, with NaN as -infinity and subnormals as 0."""
    x = x.astype(jnp.float32)
    x = jnp.where(x != x, -jnp.inf, x)
    return jnp.where(jnp.abs(x) < SMALLEST_NORMAL, 0.0, x)


def _first(numbers: _Pass, value: Callable[[Array, Array], Array], size: int) -> tuple[Array, Array]:
    """(the highest value(numbers, tokens), float32, and the lowest token that has it)."""

    def body(given: Array, token: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        best, first = state
        one = value(given, token)
        return jnp.maximum(best, one), jnp.where(one > best, token, first)

    start = jnp.full((CHUNK,), -jnp.inf, jnp.float32), lax.iota(jnp.int32, CHUNK)
    best, first = numbers.chunks(body, start)
    highest = jnp.max(best)
    return highest, jnp.min(jnp.where((best == highest) & (first < size), first, size))


def _distance(best_y: Array, image: Array) -> Array:
    """z = log2(probability of the best token / probability), at most FILTERED."""
    return jnp.minimum(product(best_y - unordered(image), LOG2_E), FILTERED)


def _kept(
    images: _Pass, best_y: Array, top_k: Array, top_p: Array, min_p: Array, size: int
) -> Callable[[Array], Array]:
    """Whether top-k, min-p and top-p keep the tokens of an image. A filter that is off takes no pass."""
    some_k, some_p = (top_k > 0) & (top_k < size), top_p < 1.0
    low, high = order_of(best_y - HORIZON), order_of(best_y) + 1

    def by_count() -> Array:
        return _threshold(images, lambda image: image, False, top_k, low, high, halfway)

    highest_k = lax.cond(some_k, by_count, lambda: _number(LOWEST, top_k))
    least = jnp.where(min_p > 0.0, least_weight(min_p), 0)

    def weights(image: Array) -> Array:
        """0 for what top-k and min-p drop, and past the row's end."""
        made = weights_of(_distance(best_y, image))
        return jnp.where((image >= highest_k) & (made >= least) & (image > LOWEST), made, 0)

    highest_p = lax.cond(some_p, lambda: _by_mass(images, weights, top_p), lambda: _number(0, top_k))

    def keep(image: Array) -> Array:
        made = weights_of(_distance(best_y, image))
        return (image >= highest_k) & (made >= least) & (made >= highest_p)

    return keep


def _number(number: int, like: Array) -> Array:
    """The number as a computed value: a branch of Pallas' cond returns no literal."""
    return (like & 0) | number


def _by_mass(images: _Pass, weights: Callable[[Array], Array], top_p: Array) -> Array:
    """The least weight that top-p keeps."""

    def total(part: Callable[[Array], Array]) -> Array:
        return images.fold(lambda image, _: part(weights(image)), jnp.add, 0, jnp.sum)

    # The exact sum of up to 2**19 weights of 2**30, in three limbs of ten bits; only its bit length is needed.
    low, middle = total(lambda weight: weight & 1023), total(lambda weight: (weight >> 10) & 1023)
    upper = total(lambda weight: weight >> 20) + ((middle + (low >> 10)) >> 10)
    shift = jnp.maximum(32 - lax.clz(upper) - (SUM_BITS - 20), 0)
    target = jnp.maximum(scaled_target(total(lambda weight: weight >> shift), top_p), 1)
    high = (jnp.int32(2**WEIGHT_BITS) >> shift) + 1
    found = _threshold(images, lambda image: weights(image) >> shift, True, target, jnp.int32(1), high, octaves)
    return found << shift


def _threshold(
    images: _Pass,
    value: Callable[[Array], Array],
    weighted: bool,
    target: Array,
    low: Array,
    high: Array,
    middle: Callable[[Array, Array], Array],
) -> Array:
    """`find_threshold` over value(image) of one row; a token's weight is its value if `weighted`, else 1."""

    def mass(t: Array) -> Array:
        def term(image: Array, _: Array) -> Array:
            v = value(image)
            return jnp.where(v >= t, v if weighted else 1, 0)

        return images.fold(term, jnp.add, 0, jnp.sum)

    def lowest(low: Array) -> Array:
        def term(image: Array, _: Array) -> Array:
            v = value(image)
            return jnp.where(v >= low, v, HIGHEST)

        return images.fold(term, jnp.minimum, HIGHEST, jnp.min)

    def highest(high: Array) -> Array:
        def term(image: Array, _: Array) -> Array:
            v = value(image)
            return jnp.where(v < high, v, LOWEST)

        return images.fold(term, jnp.maximum, LOWEST, jnp.max)

    passes = Passes(mass, lowest, highest, lambda rows: rows)
    active = jnp.bool_(True)
    return find_threshold(passes, lambda low: low if weighted else 1, target, low, high, active, middle)
