"""Elementwise arithmetic of `fxhlo.sample` in JAX, shared by its implementations.

Takes and returns arrays of any shape. Guaranteed: the operations of `reference.py`, in its order, so that float
results are equal bit for bit if float32 addition, subtraction and multiplication round as in IEEE 754.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from .reference import EXP_SERIES, LOG_SERIES, PARITY, ROTATIONS, TOP_P_BITS, WEIGHT_BITS

LARGEST_BITS, SMALLEST_BITS = 0x7F7FFFFF, 0x00800000  # bits of the largest and the smallest normal float32


def bits_of(x: Array) -> Array:
    """The int32 of a float32's bits."""
    return lax.bitcast_convert_type(x, jnp.int32)


def float_of(x: Array) -> Array:
    """The float32 of an int32's bits."""
    return lax.bitcast_convert_type(x, jnp.float32)


def product(a: Array, b: Array | float) -> Array:
    """a * b with the lowest mantissa bit cleared, so that no compiler fuses it with a following addition."""
    return float_of(bits_of(a * b) & -2)


def series(x: Array, coefficients: tuple[float, ...]) -> Array:
    """Polynomial by Horner's scheme; coefficients start with the constant."""
    value = product(x, coefficients[-1]) + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        value = product(value, x) + coefficient
    return value


def split(x: Array) -> tuple[Array, Array]:
    """(e, g) with x = 2**e * (1 - g), e a float, g in (0, 0.5], for positive normal x."""
    bits = bits_of(x)
    mantissa = float_of((bits & 0x7FFFFF) | 0x3F000000)
    return ((bits >> 23) - 126).astype(jnp.float32), 1.0 - mantissa


def shift_right(x: Array, count: int) -> Array:
    """Logical right shift of int32."""
    return lax.shift_right_logical(x, jnp.full_like(x, count))


def threefry(key: tuple[Array, Array], counter: tuple[Array, Array]) -> Array:
    """First word of Threefry-2x32-20; operands are broadcast."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ PARITY)
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for block in range(5):
        for rotation in ROTATIONS[block % 2]:
            x = x + y
            y = ((y << rotation) | shift_right(y, 32 - rotation)) ^ x
        x, y = x + keys[(block + 1) % 3], y + (keys[(block + 2) % 3] + (block + 1))
    return x


def uniform(bits: Array) -> Array:
    """(the low 31 bits + 0.5) * 2**-32, rounded once: two halves are converted, which is exact for any rounding mode."""
    high, low = (bits >> 16) & 0x7FFF, bits & 0xFFFF
    whole = high.astype(jnp.float32) * 2.0**16 + low.astype(jnp.float32)
    return (whole + 0.5) * 2.0**-32


def log2_exponential(bits: Array) -> Array:
    """log2(E) of a standard exponential E from 32 random bits, up to a factor common to all tokens."""
    small = bits < 0
    u = uniform(bits)
    exponent, g = split(u)
    g = jnp.where(small, g, u)
    exponential = product(g, series(g, LOG_SERIES)) - jnp.where(small, exponent, 0.0)
    exponent, g = split(exponential)
    return exponent - product(g, series(g, LOG_SERIES))


def weights_of(z: Array) -> Array:
    """floor(2**30 * 2**-z) as int32, for z >= 0."""
    z = jnp.minimum(z, 31.0)
    whole = z.astype(jnp.int32)
    fraction = z - whole.astype(jnp.float32)
    power = product(fraction, series(fraction, EXP_SERIES)) + 1.0
    return (power * 2.0**WEIGHT_BITS).astype(jnp.int32) >> whole


def least_weight(min_p: Array) -> Array:
    """The smallest weight that min-p keeps."""
    return jnp.ceil(jnp.clip(min_p, 0.0, 1.0) * 2.0**WEIGHT_BITS).astype(jnp.int32)


def order_of(y: Array) -> Array:
    """Order image: int32 that sort as the floats do (no NaN)."""
    bits = bits_of(y)
    return jnp.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def unordered(value: Array) -> Array:
    """The float32 of an order image."""
    return float_of(jnp.where(value < 0, (-value) | -(2**31), value))


def halfway(low: Array, high: Array) -> Array:
    """Midpoint of two order images as floats, not as bits."""
    return order_of(unordered(low) * 0.5 + unordered(high) * 0.5)


def divided(x: Array, t: Array, reciprocal: Array | None = None) -> Array:
    """Order image of x / t, correctly rounded without a division, for normal t > 0 and x that is not NaN.

    The quotient is clipped to finite numbers, and subnormals are flushed to zero. With X and T the 24-bit
    significands, the quotient's is Q = X * 2**s / T rounded to nearest, with s 23 or 24. A float32 estimate of Q is off by a
    few units, so that the remainder X * 2**s - Q * T fits in 32 bits, though its terms do not, and gives the correction of Q.
    There are no ties: an odd 2 * Q + 1 of 25 bits does not divide X. `reciprocal`: that of t's significand in [1, 2), accurate
    to a few units in the last place.
    """
    bits, divisor = bits_of(x), (bits_of(t) & 0x7FFFFF) | 0x800000
    if reciprocal is None:
        reciprocal = reciprocal_of(t)
    exponent, significand = (bits >> 23) & 0xFF, (bits & 0x7FFFFF) | 0x800000
    less = jnp.where(significand < divisor, 1, 0)
    quotient = ((significand << less).astype(jnp.float32) * reciprocal).astype(jnp.int32)
    rest = (significand << (23 + less)) - quotient * divisor
    more = (rest.astype(jnp.float32) * (reciprocal * 2.0**-23)).astype(jnp.int32)
    quotient, rest = quotient + more, rest - more * divisor
    quotient = quotient + jnp.where(2 * rest > divisor, 1, 0) - jnp.where(2 * rest < -divisor, 1, 0)
    exponents = jnp.minimum(exponent - (bits_of(t) >> 23) + (126 - less), 254)  # larger ones would overflow 32 bits
    magnitude = (exponents << 23) + quotient
    magnitude = jnp.where(magnitude < SMALLEST_BITS, 0, jnp.minimum(magnitude, LARGEST_BITS))
    magnitude = jnp.where(exponent == 0, 0, jnp.where(exponent == 255, LARGEST_BITS, magnitude))
    return jnp.where(bits < 0, -magnitude, magnitude)


def reciprocal_of(t: Array) -> Array:
    """Approximately 1 / (t's significand in [1, 2))."""
    return 1.0 / float_of((bits_of(t) & 0x7FFFFF) | 0x3F800000)


def octaves(low: Array, high: Array) -> Array:
    """Approximate geometric mean of two weights, which spread over many octaves."""
    bits = (bits_of(low.astype(jnp.float32)) >> 1) + (bits_of(high.astype(jnp.float32)) >> 1)
    return float_of(bits).astype(jnp.int32)


def middle_bits(low: Array, high: Array) -> Array:
    """floor((low + high) / 2) without overflow."""
    return (low & high) + ((low ^ high) >> 1)


def scaled_target(total: Array, top_p: Array) -> Array:
    """ceil(total * top_p) in integers: top_p in units of 2**-24, total below 2**31, the product in 64 bits."""
    fraction = (jnp.clip(top_p, 0.0, 1.0) * 2.0**TOP_P_BITS).astype(jnp.int32)
    a, b, c, d = total >> 16, total & 0xFFFF, fraction >> 16, fraction & 0xFFFF
    cross = shift_right(b * d, 16) + ((a * d) & 0xFFFF) + ((b * c) & 0xFFFF)
    low = (cross << 16) | ((b * d) & 0xFFFF)
    high = a * c + shift_right(a * d, 16) + shift_right(b * c, 16) + shift_right(cross, 16)
    floor = (high << (32 - TOP_P_BITS)) | shift_right(low, TOP_P_BITS)
    below = 2**TOP_P_BITS - 1
    return floor + (((low & below) + below) >> TOP_P_BITS)  # one more where something lies below
