"""Special functions as JAX functions in float64, by formulas that converge fast rather than by tables of coefficients.

Sources: Digital Library of Mathematical Functions (https://dlmf.nist.gov), sections as named. A trapezoid sum of a smooth
periodic function, or of one that decays doubly exponentially, converges exponentially (Trefethen and Weideman, The
Exponentially Convergent Trapezoidal Rule, 2014): so do the integrals of Bessel functions.
"""

from __future__ import annotations

from collections.abc import Callable
from math import factorial, lgamma, pi

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

EULER = 0.57721566490153286061
POINTS = 128
"""Number of points of the trapezoid sums over the circle: enough for |x| < FAR."""
FAR = 30.0
"""|x| from which Hankel's expansion is accurate to float64."""
TERMS = 40
"""Number of terms of Neumann's series."""
ANGLES = 2 * pi * np.arange(POINTS) / POINTS


def _summed(term: Callable[..., Array], weights: np.ndarray, *others: np.ndarray) -> Array:
    """sum over k of weights[k] * term(others[0][k], ...), in a loop, so that memory does not grow with k."""
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
    return jnp.where(jnp.isinf(x), jnp.nan, jnp.where(x < 0, -value, value) if order else value)


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
    return jnp.where(jnp.isnan(x) | jnp.isposinf(x), jnp.nan, value)


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
    return jnp.where(jnp.isfinite(x), value, jnp.nan)


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


BERNOULLI = (
    1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510, 43867 / 798, -174611 / 330, 854513 / 138, -236364091 / 2730,
)  # fmt: skip
"""B2, B4, ... of Euler and Maclaurin's formula."""
EXPLICIT = 12
"""Number of terms of zeta that are added explicitly; the remaining q is large enough for that formula."""


def _zeta_of_positive(x: Array, q: Array) -> Array:
    """Hurwitz's zeta for x > 1 and finite q > 0: EXPLICIT terms, then DLMF 25.11.28."""

    def add(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        a, total = carry
        low = a < EXPLICIT
        return jnp.where(low, a + 1, a), jnp.where(low, total + a**-x, total)

    a, total = jax.lax.fori_loop(0, EXPLICIT, add, (q, jnp.zeros_like(q)))
    total = total + a ** (1 - x) / (x - 1) + 0.5 * a**-x
    factor = x * a ** (-x - 1)
    for k, number in enumerate(BERNOULLI, 1):
        total = total + number / factorial(2 * k) * factor
        factor = factor * (x + 2 * k - 1) * (x + 2 * k) / (a * a)
    return total


def zeta(x: Array, q: Array) -> Array:
    """Hurwitz's zeta with ATen's special cases; x and q float64 of one shape.

    The terms of a negative q are zeta's again, with a sign by the parity of x: so no loop depends on q.
    """
    whole = q == jnp.floor(q)
    fine = (x > 1) & jnp.isfinite(q) & ~((q <= 0) & whole)
    exponent, start = jnp.where(fine, x, 2.0), jnp.where(fine, q, 1.0)
    negative = start < 0
    above = jnp.where(negative, start - jnp.floor(start), start)  # the first positive term
    below, beyond = jnp.where(negative, 1 - above, 1.0), jnp.where(negative, 1 - start, 1.0)
    parts = _zeta_of_positive(jnp.broadcast_to(exponent, (3, *x.shape)), jnp.stack([above, below, beyond]))
    sign = jnp.where(jnp.mod(exponent, 2) == 1, -1, 1)
    total = parts[0] + jnp.where(negative, sign * (parts[1] - parts[2]), 0)
    total = jnp.where(jnp.isposinf(x), jnp.where(q < 1, jnp.inf, jnp.where(q == 1, 1.0, jnp.nan)), total)
    total = jnp.where(jnp.isposinf(q) | jnp.isnan(q) | jnp.isnan(x), jnp.nan, total)
    total = jnp.where(q <= 0, jnp.where(whole, jnp.inf, jnp.where(x == jnp.floor(x), total, jnp.nan)), total)
    return jnp.where(x == 1, jnp.inf, jnp.where(x < 1, jnp.nan, total))


def polygamma(x: Array, *, n: int) -> Array:
    """The derivative of order n of digamma, n > 0: DLMF 25.11.12."""
    sign = 1.0 if n % 2 else -1.0
    return sign * np.exp(lgamma(n + 1)) * zeta(jnp.full_like(x, n + 1), x)


def trigamma(x: Array, *, single: bool = False) -> Array:
    """Trigamma, by reflection below one half as in ATen, so that negative integers give ATen's results.

    single: ATen computes in float32, where the sine of pi times an integer is a rounding error, not 0.
    """
    flipped = x < 0.5
    sine = jnp.sin(np.float32(pi) * x.astype(jnp.float32)).astype(x.dtype) if single else jnp.sin(pi * x)
    inner = zeta(jnp.full_like(x, 2.0), jnp.where(flipped, 1 - x, x))
    return jnp.where(jnp.isposinf(x), 0.0, jnp.where(flipped, pi * pi / (sine * sine) - inner, inner))


# -- incomplete gamma functions ------------------------------------------------------------------------------------

MANY = 100.0
"""`a` from which the density is integrated; below it the series and the continued fraction need a few hundred terms at most."""
NODES, WEIGHTS = np.polynomial.legendre.leggauss(48)


def _gamma_tail(a: Array, x: Array) -> tuple[Array, Array]:
    """Returns (the integral of t^(a-1) e^-t / gamma(a) from x outward, whether it is the upper tail), for a >= MANY, finite x >= 0.

    Gauss and Legendre's rule from x to where the density has vanished (Press et al., Numerical Recipes, 6.2.1).
    """
    mode, width = a - 1, jnp.sqrt(a - 1)
    upper = x > mode
    above = jnp.maximum(mode + 11.5 * width, x + 6 * width)
    below = jnp.maximum(0.0, jnp.minimum(mode - 11.5 * width, x - 6 * width))
    end = jnp.where(upper, above, below)
    log_scale = -0.5 * jnp.log(2 * pi * mode) - sum(
        number / (2 * k * (2 * k - 1) * mode ** (2 * k - 1)) for k, number in enumerate(BERNOULLI[:5], 1)
    )  # mode log(mode) - mode - lgamma(a), by Stirling's series: computing the difference would cancel all digits

    def density(node: Array) -> Array:
        share = ((end + x) / 2 + (end - x) / 2 * node - mode) / mode
        series = share**2 * sum((-1) ** (k + 1) / k * share ** (k - 2) for k in range(2, 12))
        rest = jnp.where(jnp.abs(share) < 0.02, series, jnp.log1p(jnp.maximum(share, -1.0)) - share)
        return jnp.exp(mode * rest)

    total = _summed(density, WEIGHTS, NODES)
    return jnp.abs(end - x) / 2 * total * jnp.exp(log_scale), upper


def incomplete_gamma(a: Array, x: Array, *, upper: bool) -> Array:
    """The regularized incomplete gamma functions P(a, x), or Q(a, x) where upper; float64 of one shape, with ATen's special cases."""
    fine = (a > 0) & (x > 0) & jnp.isfinite(a) & jnp.isfinite(x)
    a_, x_ = jnp.where(fine, a, 1.0), jnp.where(fine, x, 1.0)
    many = a_ >= MANY
    of = jax.lax.igammac if upper else jax.lax.igamma
    few = of(jnp.where(many, 1.0, a_), jnp.where(many, 1.0, x_))
    tail, is_upper = _gamma_tail(jnp.maximum(a_, MANY), x_)
    value = jnp.where(many, jnp.where(is_upper == upper, tail, 1 - tail), few)
    value = jnp.where(
        jnp.isnan(a) | jnp.isnan(x), jnp.nan, value
    )  # the lines below decide by the other operand, as ATen does
    value = jnp.where(jnp.isposinf(x), 0.0 if upper else 1.0, value)
    value = jnp.where(jnp.isinf(a), jnp.where(jnp.isinf(x), jnp.nan, 1.0 if upper else 0.0), value)
    value = jnp.where(x == 0, 1.0 if upper else 0.0, value)
    value = jnp.where(a == 0, jnp.where(x > 0, 0.0 if upper else 1.0, jnp.nan), value)
    return jnp.where((a < 0) | (x < 0), jnp.nan, value)
