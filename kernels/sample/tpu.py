"""`fxhlo.sample` in Pallas for TPU: reads a block of rows into VMEM once, where every pass over the vocabulary reads it.

Returns the tokens of `reference.py`, bit for bit; see there for the semantics. Thresholds are found by bisection as in
xla.py. Only one token per row is written back.

Guaranteed on hardware: tokens depend only on operations with exactly defined results: 32-bit
integer arithmetic, float32 addition, subtraction and multiplication (IEEE 754, to nearest even, subnormals flushed
to zero), conversions of integers below 2**24, truncation. Division on a TPU is not among them:
`xla_arithmetic.divided` estimates the quotient and rounds it correctly by its integer remainder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ...runtime.core.targets import LANES, SUBLANES, Target
from ..spec import Operands
from .reference import EPSILON, FILTERED, HORIZON, LARGEST, LOG2_E, SMALLEST_NORMAL, SUM_BITS, WEIGHT_BITS
from .tuning import CHUNK, DRAW, padded, too_large, vmem_bytes
from .xla_arithmetic import (
    LARGEST_BITS,
    bits_of,
    divided,
    float_of,
    halfway,
    least_weight,
    log2_exponential,
    octaves,
    order_of,
    product,
    reciprocal_of,
    scaled_target,
    threefry,
    unordered,
    weights_of,
)
from .xla_threshold import Passes, find_threshold

LOWEST, HIGHEST = -(2**31), 2**31 - 1
Rows = Array
"""[rows, LANES]: one value per row, repeated in all lanes."""


def supports(operands: Operands, attributes: Mapping[str, Any], target: Target) -> str | None:
    logits = operands[0]
    rows, size = logits.shape
    if logits.dtype.name not in ("float32", "bfloat16"):
        return f"logits are {logits.dtype}, not float32 or bfloat16"
    if rows < 1 or not 0 < size <= 2**19:
        return f"a vocabulary of {size} tokens could overflow the 32-bit sums of 2**19"
    return too_large(size, vmem_bytes(size, logits.dtype.itemsize), target)


def lower(
    logits: Array, temperature: Array, top_k: Array, top_p: Array, min_p: Array, seeds: Array, steps: Array
) -> Array:
    """Operands and result as in `reference.sample`."""
    rows, size = logits.shape
    block, width = min(rows, SUBLANES), padded(size)
    columns = [bits_of(temperature), top_k, bits_of(top_p), bits_of(min_p), seeds[:, 0], seeds[:, 1], steps]
    call = pl.pallas_call(
        partial(_kernel, size=size),
        grid=(pl.cdiv(rows, block),),
        in_specs=[
            pl.BlockSpec((block, len(columns)), lambda i: (i, 0)),
            pl.BlockSpec((block, width), lambda i: (i, 0)),
        ],
        out_specs=pl.BlockSpec((block, LANES), lambda i: (i, 0)),
        out_shape=jax.ShapeDtypeStruct((rows, LANES), jnp.int32),
        scratch_shapes=[pltpu.VMEM((block, width), jnp.int32), pltpu.VMEM((block, LANES), jnp.int32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=vmem_bytes(size, logits.dtype.itemsize)
        ),
        cost_estimate=pl.CostEstimate(
            flops=200 * rows * size, bytes_accessed=logits.nbytes + 4 * rows * (LANES + 8), transcendentals=0
        ),
        name="fxhlo_sample",
    )
    return call(jnp.stack(columns, axis=1), logits)[:, 0]


def _kernel(parameters: Any, logits: Any, tokens: Any, image: Any, threshold: Any, *, size: int) -> None:
    """Processes one block. `image` [rows, padded V] and `threshold`: top-k, top-p and min-p keep the tokens with image >= threshold."""
    shape = threshold.shape
    names = ("temperature", "top_k", "top_p", "min_p", "seed_low", "seed_high", "step")
    row = {name: jnp.broadcast_to(parameters[:, i : i + 1], shape) for i, name in enumerate(names)}
    temperature, top_p, min_p = (float_of(row[name]) for name in ("temperature", "top_p", "min_p"))
    vocabulary = _Vocabulary(logits, image, size)
    best, finite, greedy = _greedy(vocabulary, shape)
    tokens[...] = greedy
    random = temperature >= EPSILON

    @pl.when(_any(random))
    def _draw() -> None:
        scale = _Scale(jnp.where(random, temperature, 1.0))
        best_y = scale.best(best, finite)
        # Greedy rows use no filter, whatever their other parameters are.
        some_k = random & (row["top_k"] > 0) & (row["top_k"] < size)
        some_p, some_min = random & (top_p < 1.0), random & (min_p > 0.0)
        threshold[...] = jnp.full(shape, LOWEST, jnp.int32)

        @pl.when(_any(some_k | some_p | some_min))
        def _filter() -> None:
            vocabulary.fill(lambda at, x, _: scale.order(x), LOWEST)

            @pl.when(_any(some_k))
            def _top_k() -> None:
                low, high = order_of(best_y - HORIZON), order_of(best_y) + 1
                found = _threshold(vocabulary, False, row["top_k"], low, high, some_k, halfway)
                threshold[...] = jnp.where(some_k, found, LOWEST)

            @pl.when(_any(some_p | some_min))
            def _weigh() -> None:
                least = jnp.where(some_min, least_weight(min_p), 0)
                top = threshold[...]

                def weight(at: Array, x: Array, order: Array) -> Array:
                    weights = weights_of(_distance(best_y, order, at))
                    keep = (order >= _wide(top, at)) & (weights >= _wide(least, at))
                    return jnp.where(keep, weights, -1)

                vocabulary.fill(weight, -1)
                threshold[...] = jnp.zeros(shape, jnp.int32)

                @pl.when(_any(some_p))
                def _top_p() -> None:
                    threshold[...] = jnp.where(some_p, _top_p_threshold(vocabulary, some_p, top_p), 0)

        winner = _race(vocabulary, scale, best_y, threshold[...], row)
        tokens[...] = jnp.where(random & (best > -jnp.inf), winner, greedy)


class _Vocabulary:
    """Passes over a block's tokens, in chunks."""

    def __init__(self, logits: Any, image: Any, size: int) -> None:
        self.logits, self.image, self.size = logits, image, size
        self.rows, self.width = image.shape

    def logits_at(self, start: Array, width: int, at: Array) -> Array:
        """The logits of a chunk in float32, with NaN as -infinity, subnormals as 0, and -infinity past the end."""
        x = self.logits[:, pl.ds(start, width)].astype(jnp.float32)
        x = jnp.where((x != x) | (at >= self.size), -jnp.inf, x)
        return jnp.where(jnp.abs(x) < SMALLEST_NORMAL, 0.0, x)

    def chunks(self, width: int, body: Callable[[Array, Array, Any], Any], state: Any) -> Any:
        """Folds body(start, token ids, state) over chunks of `width` tokens."""
        place = lax.broadcasted_iota(jnp.int32, (self.rows, width), 1)

        def step(index: Array, state: Any) -> Any:
            start = pl.multiple_of(index * width, width)
            return body(start, place + start, state)

        return lax.fori_loop(0, self.width // width, step, state)

    def fill(self, function: Callable[[Array, Array, Array], Array], outside: int) -> None:
        """Overwrites the image with function(token ids, logits, image), and with `outside` past the end."""

        def body(start: Array, at: Array, state: None) -> None:
            x = self.logits_at(start, DRAW, at)
            made = function(at, x, self.image[:, pl.ds(start, DRAW)])
            self.image[:, pl.ds(start, DRAW)] = jnp.where(at < self.size, made, outside)

        self.chunks(DRAW, body, None)

    def total(self, term: Callable[[Array], tuple[Array, ...]], combine: Callable, initial: int) -> tuple[Rows, ...]:
        """Combines each result of term(image) over a row."""
        count = len(jax.eval_shape(term, jax.ShapeDtypeStruct((self.rows, LANES), jnp.int32)))

        def body(start: Array, at: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            image = self.image[:, pl.ds(start, CHUNK)]
            parts = [list(state)]
            for lane in range(0, CHUNK, LANES):
                parts.append(list(term(image[:, lane : lane + LANES])))
            while len(parts) > 1:
                paired = [
                    [combine(a, b) for a, b in zip(x, y, strict=True)]
                    for x, y in zip(parts[::2], parts[1::2], strict=False)
                ]
                parts = paired + parts[len(parts) & ~1 :]
            return tuple(parts[0])

        zero = tuple(jnp.full((self.rows, LANES), initial, jnp.int32) for _ in range(count))
        return tuple(_across(one, combine) for one in self.chunks(CHUNK, body, zero))


def _across(x: Array, combine: Callable[[Array, Array], Array]) -> Rows:
    """Combines all lanes; every lane holds the result."""
    for distance in (64, 32, 16, 8, 4, 2, 1):
        x = combine(x, pltpu.roll(x, distance, 1))
    return x


def _any(condition: Rows) -> Array:
    """Scalar: whether any row's condition holds."""
    return jnp.max(jnp.where(condition, 1.0, 0.0)) > 0.0


def _wide(row: Rows, like: Array) -> Array:
    """Repeats a row's value for each token of a chunk."""
    return jnp.concatenate([row] * (like.shape[1] // LANES), axis=1)


def _first(value: Array, token: Array, better: Callable[[Array, Array], Array], size: int) -> tuple[Rows, Rows]:
    """(best value, lowest token with it) over the lanes."""
    best = _across(value, better)
    return best, _across(jnp.where(value == best, token, size), jnp.minimum)


def _greedy(vocabulary: _Vocabulary, shape: tuple[int, int]) -> tuple[Rows, Rows, Rows]:
    """(highest logit, highest logit that is not +infinity, lowest token with the highest logit)."""

    def body(start: Array, at: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        best, finite, token = state
        x = vocabulary.logits_at(start, CHUNK, at)
        for lane in range(0, CHUNK, LANES):
            one, here = x[:, lane : lane + LANES], at[:, lane : lane + LANES]
            token = jnp.where(one > best, here, token)
            best = jnp.maximum(best, one)
            finite = jnp.maximum(finite, jnp.where(one == jnp.inf, -jnp.inf, one))
        return best, finite, token

    lowest = jnp.full(shape, -jnp.inf, jnp.float32)
    lanes = lax.broadcasted_iota(jnp.int32, shape, 1)
    best, finite, token = vocabulary.chunks(CHUNK, body, (lowest, lowest, lanes))
    best, token = _first(best, token, jnp.maximum, vocabulary.size)
    return best, _across(finite, jnp.maximum), token


class _Scale:
    """x / t as in `reference.scaled`, for a t per row that is positive and normal, or +infinity."""

    def __init__(self, t: Rows) -> None:
        self.t, self.infinite, self.reciprocal = t, t == jnp.inf, reciprocal_of(t)

    def order(self, x: Array) -> Array:
        """Order image of x / t; x is not NaN."""
        finite = divided(x, _wide(self.t, x), _wide(self.reciprocal, x))
        return jnp.where(_wide(self.infinite, x), jnp.where(jnp.abs(x) == jnp.inf, -LARGEST_BITS, 0), finite)

    def best(self, best: Rows, finite: Rows) -> Rows:
        """The highest quotient, float32, from the row's highest logit and its highest that is not +infinity."""
        return jnp.where(self.infinite, jnp.where(finite > -jnp.inf, 0.0, -LARGEST), unordered(self.order(best)))


def _distance(best_y: Rows, order: Array, at: Array) -> Array:
    """z = log2(probability of the best token / probability), at most FILTERED."""
    return jnp.minimum(product(_wide(best_y, at) - unordered(order), LOG2_E), FILTERED)


def _threshold(
    vocabulary: _Vocabulary,
    weighted: bool,
    target: Rows,
    low: Rows,
    high: Rows,
    active: Rows,
    middle: Callable[[Rows, Rows], Rows],
    shift: Rows | None = None,
) -> Rows:
    """`find_threshold` over the image, shifted right by `shift` if given."""

    def value(v: Array) -> Array:
        return v if shift is None else v >> shift

    def mass(t: Rows) -> Rows:
        def term(v: Array) -> tuple[Array, ...]:
            v = value(v)
            return (jnp.where(v >= t, v if weighted else 1, 0),)

        return vocabulary.total(term, jnp.add, 0)[0]

    def lowest(low: Rows) -> Rows:
        return vocabulary.total(lambda v: (jnp.where(value(v) >= low, value(v), HIGHEST),), jnp.minimum, HIGHEST)[0]

    def highest(high: Rows) -> Rows:
        return vocabulary.total(lambda v: (jnp.where(value(v) < high, value(v), LOWEST),), jnp.maximum, LOWEST)[0]

    passes = Passes(mass, lowest, highest, _any)
    return find_threshold(passes, lambda low: low if weighted else 1, target, low, high, active, middle)


def _top_p_threshold(vocabulary: _Vocabulary, active: Rows, top_p: Rows) -> Rows:
    """Smallest weight that top-p keeps, from the image of weights, which is -1 for tokens filtered before."""

    def limbs(v: Array) -> tuple[Array, ...]:
        v = jnp.maximum(v, 0)
        return v & 1023, (v >> 10) & 1023, v >> 20

    # The exact sum of up to 2**19 weights of 2**30, in three limbs of ten bits; only its bit length is needed.
    low, middle, upper = vocabulary.total(limbs, jnp.add, 0)
    upper = upper + ((middle + (low >> 10)) >> 10)
    shift = jnp.maximum(32 - lax.clz(upper) - (SUM_BITS - 20), 0)
    total = vocabulary.total(lambda v: (jnp.maximum(v, 0) >> shift,), jnp.add, 0)[0]
    target = jnp.maximum(scaled_target(total, top_p), 1)
    low, high = jnp.ones_like(target), (jnp.full_like(shift, 2**WEIGHT_BITS) >> shift) + 1
    return _threshold(vocabulary, True, target, low, high, active, octaves, shift) << shift


def _race(vocabulary: _Vocabulary, scale: _Scale, best_y: Rows, threshold: Rows, row: Mapping[str, Rows]) -> Rows:
    """The kept token with the smallest E / p."""
    shape, size = threshold.shape, vocabulary.size

    def body(start: Array, at: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        keep = (vocabulary.image[:, pl.ds(start, DRAW)] >= _wide(threshold, at)) & (at < size)

        def race() -> tuple[Array, Array]:
            score, token = state
            x = vocabulary.logits_at(start, DRAW, at)
            z = jnp.where(keep, _distance(best_y, scale.order(x), at), FILTERED)
            key = _wide(row["seed_low"], at), _wide(row["seed_high"], at)
            scores = z + log2_exponential(threefry(key, (_wide(row["step"], at), at)))
            for lane in range(0, DRAW, LANES):
                one, here = scores[:, lane : lane + LANES], at[:, lane : lane + LANES]
                token = jnp.where(one < score, here, token)
                score = jnp.minimum(score, one)
            return score, token

        return lax.cond(_any(keep), race, lambda: state)  # filtered tokens cannot win

    # A filtered token scores at least FILTERED - 33, the best token at most 5.1.
    first = jnp.full(shape, FILTERED, jnp.float32), jnp.full(shape, size, jnp.int32)
    score, token = vocabulary.chunks(DRAW, body, first)
    return _first(score, token, jnp.minimum, size)[1]
