"""`fxhlo.sample` in JAX, without a sort: thresholds are found by bisection, and stages that no row uses are skipped.

Returns the tokens of `reference.py`, bit for bit; see there for the semantics and for how that is possible. The
elementwise parts are the same operations in the same order. `_threshold` replaces the sorts: it finds
"the largest t such that the tokens with value >= t weigh at least target" by masked integer sums over the vocabulary:
for top-k the values are the order image of the logits and each weighs 1; for top-p they are the integer probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from ..spec import Operands
from .reference import EPSILON, FILTERED, HORIZON, LARGEST, LOG2_E, SMALLEST_NORMAL, SUM_BITS, WEIGHT_BITS
from .xla_arithmetic import (
    halfway,
    least_weight,
    log2_exponential,
    octaves,
    order_of,
    product,
    scaled_target,
    threefry,
    weights_of,
)
from .xla_threshold import Passes, find_threshold

SLICES, LANES = 16, 128
BLOCK = 8  # rows


def _over_tokens(combine, reduce, term, *arrays: Array) -> Array:
    """reduce(term(*arrays), axis 1) as [R, 1], where `combine` is the binary form of `reduce`, and both are exact.

    Splits the row into slices that are combined elementwise first. XLA's CPU compiler fuses that into one vectorized
    pass; a plain reduction materializes its operand, and takes two to three times as long.
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
    """`find_threshold` over values int32 [R, V]; target, low, high, active [R, 1].

    A token's weight is its value (then non-negative) if `weighted`, else 1.
    """
    passes = Passes(
        mass=lambda t: _sum(lambda v: jnp.where(v >= t, v if weighted else 1, 0), values),
        lowest=lambda low: _min(lambda v: jnp.where(v >= low, v, 2**31 - 1), values),
        highest=lambda high: _max(lambda v: jnp.where(v < high, v, -(2**31)), values),
        some=jnp.any,
    )
    return find_threshold(passes, lambda low: low if weighted else 1, target, low, high, active, middle)


def _top_k_threshold(y: Array, best: Array, top_k: Array, lowest: Array) -> Array:
    """Threshold on `order_of(y)`, at least that of `lowest`; -2**31 if top-k is off."""

    active = (top_k > 0) & (top_k < y.shape[1])
    low, high = order_of(lowest), order_of(best) + 1
    t = _threshold(order_of(y), False, top_k, low, high, active, halfway)
    return jnp.where(active, t, -(2**31))


def _top_p_keep(weights: Array, top_p: Array) -> Array:
    """Mask of the tokens that top-p keeps; weights of tokens filtered before are 0."""
    active = top_p < 1.0
    # The exact sum of up to 2**19 weights of 2**30, in three limbs of ten bits; only its bit length is needed.
    low, middle = _sum(lambda w: w & 1023, weights), _sum(lambda w: (w >> 10) & 1023, weights)
    upper = _sum(lambda w: w >> 20, weights) + ((middle + (low >> 10)) >> 10)
    shift = jnp.maximum(32 - lax.clz(upper) - (SUM_BITS - 20), 0)
    weights = weights >> shift
    target = jnp.maximum(scaled_target(_sum(lambda w: w, weights), top_p), 1)

    low, high = jnp.ones_like(target), (jnp.int32(2**WEIGHT_BITS) >> shift) + 1
    t = _threshold(weights, True, target, low, high, active, octaves)
    return ~active | (weights >= t)


def cleaned(logits: Array) -> Array:
    """Logits in float32, with NaN as -infinity and subnormals as 0, since compiled code flushes them."""
    x = logits.astype(jnp.float32)
    x = jnp.where(jnp.isnan(x), -jnp.inf, x)
    return jnp.where(jnp.abs(x) < SMALLEST_NORMAL, 0.0, x)


def finite(y: Array) -> Array:
    """Clips logits divided by the temperature to finite numbers and flushes subnormals."""
    y = jnp.where(jnp.isnan(y), -LARGEST, jnp.clip(y, -LARGEST, LARGEST))
    return jnp.where(jnp.abs(y) < SMALLEST_NORMAL, 0.0, y)


def distance(y: Array, best: Array) -> Array:
    """z = log2(probability of the best token / probability), at most FILTERED."""
    return jnp.minimum(product(best - y, LOG2_E), FILTERED)


def kept(y: Array, best: Array, z: Array, top_k: Array, top_p: Array, min_p: Array, lowest: Array) -> Array:
    """Mask of the tokens that min-p, top-k and top-p keep; lowest [R, 1]: top-k ignores logits below it."""
    weights = weights_of(z)
    keep = order_of(y) >= _top_k_threshold(y, best, top_k, lowest)
    keep = keep & ((min_p <= 0.0) | (weights >= least_weight(min_p)))
    return lax.cond(jnp.any(top_p < 1.0), lambda: keep & _top_p_keep(jnp.where(keep, weights, 0), top_p), lambda: keep)


def _first_best(x: Array, best: Array) -> Array:
    """Lowest token with x == best."""
    tokens = lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return _min(lambda v, t: jnp.where(v == best, t, x.shape[1]), x, tokens)


def _draw(x: Array, best: Array, greedy: Array, parameters: tuple[Array, ...]) -> Array:
    """Tokens [R, 1] of a block with at least one random row."""
    temperature, top_k, top_p, min_p, seeds, steps = parameters
    random = temperature >= EPSILON
    # Greedy rows use no filter, whatever their other parameters are.
    top_k, top_p, min_p = jnp.where(random, top_k, 0), jnp.where(random, top_p, 1.0), jnp.where(random, min_p, 0.0)
    filters = ((top_k > 0) & (top_k < x.shape[1])) | (top_p < 1.0) | (min_p > 0.0)

    y = finite(x / jnp.where(random, temperature, 1.0))
    best_y = jnp.max(y, axis=1, keepdims=True)
    z = distance(y, best_y)

    def filtered() -> Array:
        return jnp.where(kept(y, best_y, z, top_k, top_p, min_p, best_y - HORIZON), z, FILTERED)

    z = lax.cond(jnp.any(filters), filtered, lambda: z)
    tokens = lax.broadcasted_iota(jnp.int32, x.shape, 1)
    score = z + log2_exponential(threefry((seeds[:, 0:1], seeds[:, 1:2]), (steps, tokens)))
    winner = _first_best(score, jnp.min(score, axis=1, keepdims=True))
    return jnp.where(random & (best > -jnp.inf), winner, greedy)


def _block(logits: Array, parameters: tuple[Array, ...]) -> Array:
    x = cleaned(logits)
    best = jnp.max(x, axis=1, keepdims=True)
    greedy = _first_best(x, best)
    return lax.cond(jnp.any(parameters[0] >= EPSILON), lambda: _draw(x, best, greedy, parameters), lambda: greedy)


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    logits = operands[0]
    size = logits.shape[1]
    if logits.dtype.name not in ("float32", "bfloat16"):
        return f"logits are {logits.dtype}, not float32 or bfloat16"
    if not 0 < size <= 2**19:
        return f"a vocabulary of {size} tokens could overflow the 32-bit sums of 2**19"
    return None


def lower(
    logits: Array, temperature: Array, top_k: Array, top_p: Array, min_p: Array, seeds: Array, steps: Array
) -> Array:
    """Operands and result as in `reference.sample`.

    Rows are processed in blocks: a block's data stays in the cache, and a block of greedy rows stays cheap.
    """
    rows = logits.shape[0]
    parameters = tuple(x.reshape(rows, -1) for x in (temperature, top_k, top_p, min_p, seeds, steps))
    if rows <= BLOCK or rows % BLOCK:
        return _block(logits, parameters)[:, 0]
    blocks = tuple(x.reshape(rows // BLOCK, BLOCK, -1) for x in (logits, *parameters))
    return lax.map(lambda block: _block(block[0], block[1:]), blocks).reshape(rows)
