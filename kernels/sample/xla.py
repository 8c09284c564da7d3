"""`fxhlo.sample` in JAX, without a sort: thresholds by bisection; what no row asks for is skipped.

Returns the tokens of `reference.py`, bit for bit; see there for the semantics and for what makes that possible. The
elementwise parts are the same operations in the same order. The sorts are replaced by `_threshold`, which finds
"the largest t such that the tokens with value >= t weigh at least target" by masked integer sums over the vocabulary:
for top-k the values are the order image of the logits and each weighs 1; for top-p they are the integer probabilities.
"""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from jax import Array, lax

from .constants import (
    EPSILON,
    EXP_SERIES,
    FILTERED,
    HORIZON,
    LARGEST,
    LOG2_E,
    LOG_SERIES,
    PARITY,
    ROTATIONS,
    SMALLEST_NORMAL,
    SUM_BITS,
    TOP_P_BITS,
    WEIGHT_BITS,
)

FIRST_STEPS = 12  # steps of bisection before the bracket is tightened to values that occur
SLICES, LANES = 16, 128
BLOCK = 8  # rows


def _bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x, jnp.int32)


def _float(x: Array) -> Array:
    return lax.bitcast_convert_type(x, jnp.float32)


def _product(a: Array, b: Array | float) -> Array:
    return _float(_bits(a * b) & -2)


def _series(x: Array, coefficients: tuple[float, ...]) -> Array:
    value = _product(x, coefficients[-1]) + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        value = _product(value, x) + coefficient
    return value


def _split(x: Array) -> tuple[Array, Array]:
    bits = _bits(x)
    mantissa = _float((bits & 0x7FFFFF) | 0x3F000000)
    return ((bits >> 23) - 126).astype(jnp.float32), 1.0 - mantissa


def _threefry(key: tuple[Array, Array], counter: tuple[Array, Array]) -> Array:
    """The first word of Threefry-2x32-20."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ PARITY)
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for block in range(5):
        for rotation in ROTATIONS[block % 2]:
            x = x + y
            y = ((y << rotation) | lax.shift_right_logical(y, jnp.int32(32 - rotation))) ^ x
        x, y = x + keys[(block + 1) % 3], y + (keys[(block + 2) % 3] + (block + 1))
    return x


def _log2_exponential(bits: Array) -> Array:
    small = bits < 0
    u = ((bits & 0x7FFFFFFF).astype(jnp.float32) + 0.5) * 2.0**-32
    exponent, g = _split(u)
    g = jnp.where(small, g, u)
    exponential = _product(g, _series(g, LOG_SERIES)) - jnp.where(small, exponent, 0.0)
    exponent, g = _split(exponential)
    return exponent - _product(g, _series(g, LOG_SERIES))


def _weights(z: Array) -> Array:
    z = jnp.minimum(z, 31.0)
    whole = z.astype(jnp.int32)
    fraction = z - whole.astype(jnp.float32)
    power = _product(fraction, _series(fraction, EXP_SERIES)) + 1.0
    return (power * 2.0**WEIGHT_BITS).astype(jnp.int32) >> whole


def _order(y: Array) -> Array:
    """int32 in the order of the floats (no NaN)."""
    bits = _bits(y)
    return jnp.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _unorder(value: Array) -> Array:
    return _float(jnp.where(value < 0, (-value) | -(2**31), value))


def _over_tokens(combine, reduce, term, *arrays: Array) -> Array:
    """reduce(term(*arrays), axis 1) as [R, 1], where `combine` is the binary form of `reduce`, and both are exact.

    The row is cut into slices that are combined elementwise first. XLA's CPU compiler fuses that into one vectorized
    pass; a plain reduction writes out its operand, and takes two to three times as long.
    """
    width = arrays[0].shape[1] // (SLICES * LANES) * LANES
    parts = [term(*(a[:, i * width : (i + 1) * width] for a in arrays)) for i in range(SLICES if width else 0)]
    while len(parts) > 1:
        parts = [combine(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    if SLICES * width < arrays[0].shape[1]:
        parts.append(term(*(a[:, SLICES * width :] for a in arrays)))
    results = [reduce(part, axis=1, keepdims=True) for part in parts]
    return results[0] if len(results) == 1 else combine(*results)


_sum = partial(_over_tokens, jnp.add, partial(jnp.sum, dtype=jnp.int32))
_min = partial(_over_tokens, jnp.minimum, jnp.min)
_max = partial(_over_tokens, jnp.maximum, jnp.max)


def _threshold(values: Array, weighted: bool, target: Array, low: Array, high: Array, active: Array, middle) -> Array:
    """Largest t in [low, high) such that the tokens with value >= t weigh at least target, or an equivalent t.

    values int32 [R, V]; a token weighs its value (then none is negative) where `weighted`, else 1; target, low,
    high, active [R, 1]. Active rows with too little above low give low; rows that are not active, anything.
    `middle(low, high)` guesses where to divide next.
    """

    def mass(t: Array) -> Array:
        return _sum(lambda v: jnp.where(v >= t, v if weighted else 1, 0), values)

    def open_rows(state: tuple[Array, ...]) -> Array:
        """Rows whose answer is not known: neither exactly the target above low, nor only one token in [low, high)."""
        low, high, above_low, above_high = state
        lightest = low if weighted else 1
        several = (above_low - above_high) >> 1 >= lightest
        return active & (low + 1 < high) & (above_low > target) & several

    def divide(state: tuple[Array, ...], t: Array) -> tuple[Array, ...]:
        low, high, above_low, above_high = state
        above = mass(t)
        enough = above >= target
        return (
            jnp.where(enough, t, low),
            jnp.where(enough, high, t),
            jnp.where(enough, above, above_low),
            jnp.where(enough, above_high, above),
        )

    def guess(state: tuple[Array, ...]) -> Array:
        low, high = state[:2]
        return jnp.clip(middle(low, high), jnp.minimum(low + 1, high), jnp.maximum(high - 1, low))

    def halve(state: tuple[Array, ...]) -> Array:
        low, high = state[:2]
        return (low & high) + ((low ^ high) >> 1)

    def tighten(state: tuple[Array, ...]) -> tuple[Array, ...]:
        low, high, *masses = state
        lowest = _min(lambda v: jnp.where(v >= low, v, 2**31 - 1), values)
        highest = _max(lambda v: jnp.where(v < high, v, -(2**31)), values)
        return jnp.where(active, lowest, low), jnp.where(active, highest + 1, high), *masses

    state: tuple[Array, ...] = (low, high, mass(low), jnp.zeros_like(low))
    _, state = lax.while_loop(
        lambda carry: (carry[0] < FIRST_STEPS) & jnp.any(open_rows(carry[1])),
        lambda carry: (carry[0] + 1, divide(carry[1], guess(carry[1]))),
        (jnp.int32(0), state),
    )
    state = lax.cond(jnp.any(open_rows(state)), tighten, lambda state: state, state)
    state = lax.while_loop(lambda s: jnp.any(open_rows(s)), lambda s: divide(s, halve(s)), state)
    return state[0]


def _top_k_threshold(y: Array, best: Array, top_k: Array) -> Array:
    """Threshold on `_order(y)`; -2**31 where top-k is off."""

    def middle(low: Array, high: Array) -> Array:
        return _order(_unorder(low) * 0.5 + _unorder(high) * 0.5)  # halfway between the logits, not between their bits

    active = (top_k > 0) & (top_k < y.shape[1])
    low, high = _order(best - HORIZON), _order(best) + 1
    t = _threshold(_order(y), False, top_k, low, high, active, middle)
    return jnp.where(active, t, -(2**31))


def _scaled_target(total: Array, top_p: Array) -> Array:
    """ceil(total * top_p) on integers: top_p in units of 2**-24, total below 2**31, the product in 64 bits."""
    fraction = (jnp.clip(top_p, 0.0, 1.0) * 2.0**TOP_P_BITS).astype(jnp.uint32)
    total = total.astype(jnp.uint32)
    a, b, c, d = total >> 16, total & 0xFFFF, fraction >> 16, fraction & 0xFFFF
    middle = ((b * d) >> 16) + ((a * d) & 0xFFFF) + ((b * c) & 0xFFFF)
    low = (middle << 16) | ((b * d) & 0xFFFF)
    high = a * c + ((a * d) >> 16) + ((b * c) >> 16) + (middle >> 16)
    floor = (high << (32 - TOP_P_BITS)) | (low >> TOP_P_BITS)
    return (floor + ((low & (2**TOP_P_BITS - 1)) != 0)).astype(jnp.int32)


def _top_p_keep(weights: Array, top_p: Array) -> Array:
    """True where top-p keeps the token; weights are 0 where it is filtered already."""
    active = top_p < 1.0
    # The exact sum of up to 2**19 weights of 2**30, in three limbs of ten bits; only its bit length is needed.
    low, middle = _sum(lambda w: w & 1023, weights), _sum(lambda w: (w >> 10) & 1023, weights)
    upper = _sum(lambda w: w >> 20, weights) + ((middle + (low >> 10)) >> 10)
    shift = jnp.maximum(32 - lax.clz(upper) - (SUM_BITS - 20), 0)
    weights = weights >> shift
    target = jnp.maximum(_scaled_target(_sum(lambda w: w, weights), top_p), 1)

    def octaves(low: Array, high: Array) -> Array:
        """About the geometric mean: the weights spread over many octaves."""
        bits = (_bits(low.astype(jnp.float32)) >> 1) + (_bits(high.astype(jnp.float32)) >> 1)
        return _float(bits).astype(jnp.int32)

    low, high = jnp.ones_like(target), (jnp.int32(2**WEIGHT_BITS) >> shift) + 1
    t = _threshold(weights, True, target, low, high, active, octaves)
    return ~active | (weights >= t)


def _filtered(y: Array, best: Array, z: Array, top_k: Array, top_p: Array, min_p: Array) -> Array:
    """z with FILTERED where min-p, top-k or top-p drop the token."""
    keep = _order(y) >= _top_k_threshold(y, best, top_k)
    least = jnp.ceil(jnp.clip(min_p, 0.0, 1.0) * 2.0**WEIGHT_BITS).astype(jnp.int32)
    weights = _weights(z)
    keep = keep & ((min_p <= 0.0) | (weights >= least))
    keep = lax.cond(jnp.any(top_p < 1.0), lambda: keep & _top_p_keep(jnp.where(keep, weights, 0), top_p), lambda: keep)
    return jnp.where(keep, z, FILTERED)


def _first_best(x: Array, best: Array) -> Array:
    """Lowest token with x == best."""
    tokens = lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return _min(lambda v, t: jnp.where(v == best, t, x.shape[1]), x, tokens)


def _draw(x: Array, best: Array, greedy: Array, parameters: tuple[Array, ...]) -> Array:
    """Tokens [R, 1] where some row is random."""
    temperature, top_k, top_p, min_p, seeds, steps = parameters
    random = temperature >= EPSILON
    # Greedy rows ask for no filter, whatever their other parameters say.
    top_k, top_p, min_p = jnp.where(random, top_k, 0), jnp.where(random, top_p, 1.0), jnp.where(random, min_p, 0.0)
    filters = ((top_k > 0) & (top_k < x.shape[1])) | (top_p < 1.0) | (min_p > 0.0)

    y = x / jnp.where(random, temperature, 1.0)
    y = jnp.where(jnp.isnan(y), -LARGEST, jnp.clip(y, -LARGEST, LARGEST))
    y = jnp.where(jnp.abs(y) < SMALLEST_NORMAL, 0.0, y)
    best_y = jnp.max(y, axis=1, keepdims=True)
    z = jnp.minimum(_product(best_y - y, LOG2_E), FILTERED)
    z = lax.cond(jnp.any(filters), lambda: _filtered(y, best_y, z, top_k, top_p, min_p), lambda: z)
    tokens = lax.broadcasted_iota(jnp.int32, x.shape, 1)
    score = z + _log2_exponential(_threefry((seeds[:, 0:1], seeds[:, 1:2]), (steps, tokens)))
    winner = _first_best(score, jnp.min(score, axis=1, keepdims=True))
    return jnp.where(random & (best > -jnp.inf), winner, greedy)


def _block(logits: Array, parameters: tuple[Array, ...]) -> Array:
    x = jnp.where(jnp.isnan(logits), -jnp.inf, logits)
    x = jnp.where(jnp.abs(x) < SMALLEST_NORMAL, 0.0, x)
    best = jnp.max(x, axis=1, keepdims=True)
    greedy = _first_best(x, best)
    return lax.cond(jnp.any(parameters[0] >= EPSILON), lambda: _draw(x, best, greedy, parameters), lambda: greedy)


def sample(
    logits: Array, temperature: Array, top_k: Array, top_p: Array, min_p: Array, seeds: Array, steps: Array
) -> Array:
    """Operands and result as in `reference.sample`.

    Rows go through in blocks: what a block holds stays in the cache, and a block of greedy rows stays cheap.
    """
    rows = logits.shape[0]
    parameters = tuple(x.reshape(rows, -1) for x in (temperature, top_k, top_p, min_p, seeds, steps))
    if rows <= BLOCK or rows % BLOCK:
        return _block(logits, parameters)[:, 0]
    blocks = tuple(x.reshape(rows // BLOCK, BLOCK, -1) for x in (logits, *parameters))
    return lax.map(lambda block: _block(block[0], block[1:]), blocks).reshape(rows)
