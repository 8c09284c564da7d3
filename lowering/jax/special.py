"""Special functions as JAX functions, computed in float64 and from formulas that converge fast instead of from tables of coefficients.

Sources: Digital Library of Mathematical Functions (https://dlmf.nist.gov), sections as named. A trapezoid sum of a smooth
periodic function, or of one that decays doubly exponentially, converges exponentially (Trefethen and Weideman, The
Exponentially Convergent Trapezoidal Rule, 2014): so do the integrals of Bessel functions.
"""

from __future__ import annotations

from math import factorial, lgamma, pi
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any
EULER = 0.57721566490153286061
POINTS = 128
"""Of the trapezoid sums over the circle: enough for |x| < FAR."""
FAR = 30.0
"""From here on Hankel's expansion is good to float64."""
TERMS = 40
"""Terms of Neumann's series."""
ANGLES = 2 * pi * np.arange(POINTS) / POINTS


def _summed(term: Any, weights: np.ndarray, *others: np.ndarray) -> Array:
    """sum over k of weights[k] * term(others[0][k], ...), one after the other, so that memory does not grow with k."""
    tables = [jnp.asarray(table) for table in (weights, *others)]

    def step(k: Array, total: Array) -> Array:
        weight, *rest = [table[k] for table in tables]
        return total + weight * term(*rest)

    first = term(*[table[0] for table in tables[1:]])
    return jax.lax.fori_loop(0, len(weights), step, jnp.zeros_like(first))


# -- Bessel functions of the first and second kind (DLMF 10) -------------------------------------------------------


def _hankel(x: Array, order: int) -> tuple[Array, Array]:
    """(J, Y) for large x: DLMF 10.17.3 and 10.17.4."""
    phase = x - (order / 2 + 0.25) * pi
    p, q, term = jnp.ones_like(x), jnp.zeros_like(x), jnp.ones_like(x)
    for k in range(1, 18):
        term = term * (4 * order * order - (2 * k - 1) ** 2) / (k * 8 * x)
        sign = -1 if k % 4 in (2, 3) else 1
        if k % 2:
            q = q + sign * term
        else:
            p = p + sign * term
    size = jnp.sqrt(2 / (pi * x))
    cosine, sine = jnp.cos(phase), jnp.sin(phase)
    return size * (p * cosine - q * sine), size * (p * sine + q * cosine)


def bessel_j(x: Array, *, order: int) -> Array:
    """J0 or J1: the trapezoid sum of DLMF 10.9.1 on the circle."""
    size = jnp.abs(x)
    near = jnp.minimum(size, FAR)
    value = _summed(
        lambda sine, angle: jnp.cos(order * angle - near * sine), np.full(POINTS, 1 / POINTS), np.sin(ANGLES), ANGLES
    )
    value = jnp.where(size > FAR, _hankel(jnp.maximum(size, FAR), order)[0], value)
    return jnp.where(jnp.isinf(x), 0.0, jnp.where(x < 0, -value, value) if order else value)


def bessel_y(x: Array, *, order: int) -> Array:
    """Y0 or Y1: Neumann's series (Abramowitz and Stegun 9.1.88), its sum over J folded into one trapezoid sum."""
    near = jnp.clip(x, 1e-300, FAR)
    k = np.arange(1, TERMS + 1)
    if order == 0:
        weights = ((-1.0) ** k / k * np.cos(2 * np.outer(ANGLES, k))).sum(1)
        folded = _summed(lambda sine: jnp.cos(near * sine), weights / POINTS, np.sin(ANGLES))
        value = 2 / pi * (jnp.log(near / 2) + EULER) * bessel_j(near, order=0) - 4 / pi * folded
    else:
        factors = (-1.0) ** k * (2 * k + 1) / (k * (k + 1))
        weights = (factors * np.sin(np.outer(ANGLES, 2 * k + 1))).sum(1)
        folded = _summed(lambda sine: jnp.sin(near * sine), weights / POINTS, np.sin(ANGLES))
        value = 2 / pi * (jnp.log(near / 2) + EULER - 1) * bessel_j(near, order=1)
        value = value - 2 / (pi * near) * bessel_j(near, order=0) - 2 / pi * folded
    value = jnp.where(x > FAR, _hankel(jnp.maximum(x, FAR), order)[1], value)
    value = jnp.where(x == 0, -jnp.inf, jnp.where(x < 0, jnp.nan, value))
    return jnp.where(jnp.isnan(x), jnp.nan, jnp.where(jnp.isposinf(x), 0.0, value))


def spherical_bessel_j0(x: Array) -> Array:
    """sin(x) / x."""
    small = jnp.abs(x) < 0.5
    square = x * x
    series = sum((-square) ** k / factorial(2 * k + 1) for k in range(9))
    value = jnp.where(small, series, jnp.sin(x) / jnp.where(small, 1, x))
    return jnp.where(jnp.isinf(x), 0.0, value)


# -- modified Bessel functions -------------------------------------------------------------------------------------


def modified_bessel_i(x: Array, *, order: int) -> Array:
    scaled = jax.scipy.special.i0e(x) if order == 0 else jax.scipy.special.i1e(x)
    return jnp.exp(jnp.abs(x)) * scaled


def modified_bessel_k(x: Array, *, order: float, scaled: bool) -> Array:
    """K: the trapezoid sum of DLMF 10.32.9; scaled: times exp(x)."""
    step, count = 0.09, 8200
    positive = jnp.where(x > 0, x, 1)
    reach = jnp.log(2 * 750 / positive + 3)  # beyond it exp(-x cosh t) is 0 in float64
    highest = jnp.minimum(jnp.max(jnp.ceil(reach / step), initial=1), count).astype(jnp.int32)

    def term(index: Array, total: Array) -> Array:
        t = index * step
        return total + jnp.exp(-positive * (jnp.cosh(t) - 1)) * jnp.cosh(order * t) * jnp.where(index == 0, 0.5, 1)

    value = step * jax.lax.fori_loop(0, highest + 1, term, jnp.zeros_like(positive))
    far = jnp.maximum(positive, FAR)
    expanded = part = jnp.ones_like(x)
    for k in range(1, 18):  # DLMF 10.40.2
        part = part * (4 * order * order - (2 * k - 1) ** 2) / (k * 8 * far)
        expanded = expanded + part
    value = jnp.where(positive > FAR, jnp.sqrt(pi / (2 * far)) * expanded, value)
    value = value if scaled else value * jnp.exp(-positive)
    value = jnp.where(x == 0, jnp.inf, jnp.where(x < 0, jnp.nan, value))
    return jnp.where(jnp.isnan(x), jnp.nan, jnp.where(jnp.isposinf(x), 0.0, value))


# -- others --------------------------------------------------------------------------------------------------------


def airy_ai(x: Array) -> Array:
    """Ai: its Maclaurin series (DLMF 9.4.1), and the expansions of DLMF 9.7.5 and 9.7.9 outside of it."""
    near_below, near_above = -8.0, 5.5
    inner = jnp.clip(x, near_below, near_above)
    cube = inner**3
    f, g = jnp.ones_like(x), inner
    term_f, term_g = f, g
    for k in range(1, 60):
        term_f = term_f * cube / ((3 * k - 1) * (3 * k))
        term_g = term_g * cube / ((3 * k) * (3 * k + 1))
        f, g = f + term_f, g + term_g
    value = 0.35502805388781723926 * f - 0.25881940379280679841 * g
    size = jnp.where((x < near_below) | (x > near_above), jnp.abs(x), 9.0)
    zeta = 2 / 3 * size**1.5
    terms = [1.0]
    for k in range(1, 16):
        terms.append(terms[-1] * (6 * k - 5) * (6 * k - 3) * (6 * k - 1) / (216 * k * (2 * k - 1)))
    above = sum((-1) ** k * terms[k] / zeta**k for k in range(12))
    above = above * jnp.exp(-zeta) / (2 * jnp.sqrt(pi) * size**0.25)
    even = sum((-1) ** k * terms[2 * k] / zeta ** (2 * k) for k in range(7))
    odd = sum((-1) ** k * terms[2 * k + 1] / zeta ** (2 * k + 1) for k in range(7))
    below = (jnp.cos(zeta - pi / 4) * even + jnp.sin(zeta - pi / 4) * odd) / (jnp.sqrt(pi) * size**0.25)
    value = jnp.where(x > near_above, above, jnp.where(x < near_below, below, value))
    return jnp.where(jnp.isnan(x), jnp.nan, jnp.where(jnp.isposinf(x), 0.0, jnp.where(jnp.isneginf(x), jnp.nan, value)))


def erfcx(x: Array) -> Array:
    """exp(x**2) erfc(x): DLMF 7.7.2 by the trapezoid rule with the residue of its pole (Matta and Reichel 1971)."""
    step = 0.5
    size = jnp.maximum(jnp.abs(x), 1e-300)
    total = 1 / (size * size) + 2 * sum(
        np.exp(-((n * step) ** 2)) / ((n * step) ** 2 + size * size) for n in range(1, 14)
    )
    value = step * size / pi * total
    inside = size < pi / step
    capped = jnp.where(inside, size, 1)
    value = value + jnp.where(inside, 2 * jnp.exp(capped**2) / (1 - jnp.exp(2 * pi * capped / step)), 0)
    value = jnp.where(jnp.abs(x) < 1e-3, 1 - 2 * size / np.sqrt(pi) + size**2 - 4 * size**3 / (3 * np.sqrt(pi)), value)
    value = jnp.where(jnp.isinf(x), 0.0, value)
    return jnp.where(x < 0, 2 * jnp.exp(x * x) - value, value)


def zeta(x: Array, q: Array) -> Array:
    """Hurwitz's zeta: terms until q is large, then Euler and Maclaurin's formula (DLMF 25.11.28), with ATen's special cases."""
    bernoulli = [1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510, 43867 / 798]
    bernoulli += [-174611 / 330, 854513 / 138, -236364091 / 2730]
    fine = (x > 1) & (jnp.isfinite(q))
    exponent, start = jnp.where(fine, x, 2.0), jnp.where(fine, q, 1.0)
    started = jnp.where(start == jnp.floor(start), jnp.where(start <= 0, 1.0, start), start)
    total = jnp.zeros_like(x + q)
    target = 12.0

    def more(carry: Any) -> Array:
        return jnp.any(carry[0] < target)

    def add(carry: Any) -> Any:
        a, total = carry
        low = a < target
        magnitude = jnp.abs(a) ** -exponent
        odd = jnp.mod(jnp.abs(exponent), 2) == 1
        term = jnp.where(a < 0, jnp.where(odd, -magnitude, magnitude), magnitude)
        return jnp.where(low, a + 1, a), jnp.where(low, total + term, total)

    a, total = jax.lax.while_loop(more, add, (started + jnp.zeros_like(total), total))
    total = total + a ** (1 - exponent) / (exponent - 1) + 0.5 * a**-exponent
    factor = exponent * a ** (-exponent - 1)
    for k, number in enumerate(bernoulli, 1):
        total = total + number / factorial(2 * k) * factor
        factor = factor * (exponent + 2 * k - 1) * (exponent + 2 * k) / (a * a)
    whole = q == jnp.floor(q)
    total = jnp.where(q <= 0, jnp.where(whole, jnp.inf, jnp.where(x == jnp.floor(x), total, jnp.nan)), total)
    total = jnp.where(jnp.isposinf(q) | jnp.isnan(q) | (x < 1) | jnp.isnan(x), jnp.nan, total)
    return jnp.where(x == 1, jnp.inf, total)


def polygamma(x: Array, *, n: int) -> Array:
    """The derivative of order n of digamma, n > 0: DLMF 25.11.12."""
    sign = 1.0 if n % 2 else -1.0
    return sign * np.exp(lgamma(n + 1)) * zeta(jnp.full_like(x, n + 1), x)


def trigamma(x: Array, *, single: bool = False) -> Array:
    """By reflection below one half, as ATen has it, so that whole negative numbers give what it gives there.

    single: ATen computes in float32. The sine of pi times a whole number is then what rounding leaves of it.
    """
    flipped = x < 0.5
    sine = jnp.sin(np.float32(pi) * x.astype(jnp.float32)).astype(x.dtype) if single else jnp.sin(pi * x)
    inner = zeta(jnp.full_like(x, 2.0), jnp.where(flipped, 1 - x, x))
    return jnp.where(jnp.isposinf(x), 0.0, jnp.where(flipped, pi * pi / (sine * sine) - inner, inner))
