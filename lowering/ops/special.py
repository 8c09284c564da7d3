"""Special functions and integer algorithms without an op in StableHLO or CHLO; most are emitted from JAX functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...passes.mlir import stablehlo
from ...passes.torch_private import schema_of
from .. import build
from ..build import compare, full_like, select
from ..emit.context import Context
from ..jax.emit import emit_jax
from ..promote import Operand, computed, shaped, wide
from ..registry import Rule, rule, rules
from ..types import Value

# overload -> function of jax.scipy.special
ONE = {
    "aten.i0.default": "i0",
    "aten.special_i0e.default": "i0e",
    "aten.special_i1.default": "i1",
    "aten.special_i1e.default": "i1e",
    "aten.special_ndtri.default": "ndtri",
    "aten.special_log_ndtr.default": "log_ndtr",
}
# overload -> (function of lowering/jax/special.py, its static arguments); computed in float64
PRECISE: dict[str, tuple[str, dict[str, Any]]] = {
    "aten.special_bessel_j0.default": ("bessel_j", {"order": 0}),
    "aten.special_bessel_j1.default": ("bessel_j", {"order": 1}),
    "aten.special_bessel_y0.default": ("bessel_y", {"order": 0}),
    "aten.special_bessel_y1.default": ("bessel_y", {"order": 1}),
    "aten.special_spherical_bessel_j0.default": ("spherical_bessel_j0", {}),
    "aten.special_modified_bessel_i0.default": ("modified_bessel_i", {"order": 0}),
    "aten.special_modified_bessel_i1.default": ("modified_bessel_i", {"order": 1}),
    "aten.special_modified_bessel_k0.default": ("modified_bessel_k", {"order": 0, "scaled": False}),
    "aten.special_modified_bessel_k1.default": ("modified_bessel_k", {"order": 1, "scaled": False}),
    "aten.special_scaled_modified_bessel_k0.default": ("modified_bessel_k", {"order": 0, "scaled": True}),
    "aten.special_scaled_modified_bessel_k1.default": ("modified_bessel_k", {"order": 1, "scaled": True}),
    "aten.special_airy_ai.default": ("airy_ai", {}),
    "aten.special_erfcx.default": ("erfcx", {}),
}


def _scipy(x: Any, *others: Any, name: str) -> Any:
    import jax.scipy.special

    return getattr(jax.scipy.special, name)(x, *others)


def _unary(name: str) -> Rule:
    """Rule of a function of jax.scipy.special, half precision computed in float32."""

    def rule_(ctx: Context, self: Value) -> Value:
        return build.convert(emit_jax(ctx, _scipy, build.convert(self, wide(ctx.dtype)), name=name)[0], ctx.dtype)

    return rule_


def _algorithms() -> Any:
    from ..jax import special  # imports jax only if a rule needs it

    return special


def _precise(overload: str, name: str, static: dict[str, Any]) -> Rule:
    """Rule of an entry of PRECISE, with the parameter name of the op's schema (self or x)."""

    def computed(ctx: Context, operand: Value) -> Value:
        operand = build.convert(build.convert(operand, wide(ctx.dtype)), torch.float64)
        return build.convert(emit_jax(ctx, getattr(_algorithms(), name), operand, **static)[0], ctx.dtype)

    def of_self(ctx: Context, self: Value) -> Value:
        return computed(ctx, self)

    def of_x(ctx: Context, x: Value) -> Value:
        return computed(ctx, x)

    schema = schema_of(getattr(torch.ops.aten, overload.split(".")[1]).default)
    return of_x if schema.arguments[0].name == "x" else of_self


@rule("aten.special_zeta.default", "aten.special_zeta.self_scalar", "aten.special_zeta.other_scalar")
def special_zeta(ctx: Context, self: Operand, other: Operand) -> Value:
    operands = [build.convert(shaped(operand, ctx.shape, wide(ctx.dtype)), torch.float64) for operand in (self, other)]
    return build.convert(emit_jax(ctx, _algorithms().zeta, *operands)[0], ctx.dtype)


def _incomplete_gamma(*, upper: bool) -> Rule:
    def rule_(ctx: Context, self: Value, other: Value) -> Value:
        operands = [build.convert(shaped(one, ctx.shape, wide(ctx.dtype)), torch.float64) for one in (self, other)]
        return build.convert(emit_jax(ctx, _algorithms().incomplete_gamma, *operands, upper=upper)[0], ctx.dtype)

    return rule_


@rule("aten.polygamma.default")
def polygamma(ctx: Context, n: int, self: Value) -> Value:
    if n == 0:
        return rules()["aten.digamma.default"](ctx, self)  # type: ignore[return-value]
    operand = build.convert(build.convert(self, wide(ctx.dtype)), torch.float64)
    if n == 1:
        single = wide(ctx.dtype) is torch.float32
        return build.convert(emit_jax(ctx, _algorithms().trigamma, operand, single=single)[0], ctx.dtype)
    return build.convert(emit_jax(ctx, _algorithms().polygamma, operand, n=n)[0], ctx.dtype)


for _overload, (_name, _static) in PRECISE.items():
    rule(_overload)(_precise(_overload, _name, _static))
for _overload, _name in ONE.items():
    rule(_overload)(_unary(_name))
for _overload, _upper in (("aten.igamma.default", False), ("aten.igammac.default", True)):
    rule(_overload)(_incomplete_gamma(upper=_upper))


def _frexp(x: Any) -> Any:
    import jax.numpy as jnp

    return jnp.frexp(x)


@rule("aten.frexp.Tensor")
def frexp(ctx: Context, self: Value) -> list[Value]:
    mantissa, exponent = emit_jax(ctx, _frexp, build.convert(self, wide(self.dtype)))
    return [build.convert(mantissa, self.dtype), build.convert(exponent, torch.int32)]


def _gcd(a: Value, b: Value) -> Value:
    """Follows c10's calc_gcd step by step: `abs` of the dtype's minimum stays negative, so that signs are those of C.

    Two steps at least halve the remainder's absolute value, so twice the dtype's bits suffice for all operands.
    """
    zero, last = full_like(a, 0), 2 * 8 * a.dtype.itemsize

    def unfinished(step: Value, a: Value, b: Value) -> Value:
        left = build.reduce_with(build.logical_or, compare("ne", a, zero), False, range(a.rank))
        return build.logical_and(left, compare("lt", step, full_like(step, last)))

    def divided(step: Value, a: Value, b: Value) -> list[Value]:
        more = compare("ne", a, zero)
        rest = build.binary(stablehlo.remainder, b, select(more, a, full_like(a, 1)))
        return [build.add(step, full_like(step, 1)), select(more, rest, a), select(more, a, b)]

    return build.while_([build.full((), torch.int32, 0), _magnitude(a), _magnitude(b)], unfinished, divided)[2]


def _magnitude(x: Value) -> Value:
    """abs for signed integers; returns unsigned ones unchanged."""
    return build.unary(stablehlo.abs, x) if x.dtype.is_signed else x


def _lcm(a: Value, b: Value) -> Value:
    """|a / gcd * b|. As in C, 8-bit and 16-bit integers are multiplied as int32 and truncated; wider ones wrap around."""
    dtype, divisor = a.dtype, _gcd(a, b)
    within = torch.int32 if dtype.itemsize < 4 else dtype
    a, b, divisor = (build.convert(one, within) for one in (a, b, divisor))
    nothing = compare("eq", divisor, full_like(divisor, 0))
    quotient = build.divide(a, select(nothing, full_like(divisor, 1), divisor))
    return build.convert(select(nothing, full_like(a, 0), _magnitude(build.multiply(quotient, b))), dtype)


def _integers(function: Callable[[Value, Value], Value]) -> Rule:
    """Rule of an op on two integer operands, converted to the result's dtype and broadcast to its shape."""

    def rule_(ctx: Context, self: Value, other: Value) -> Value:
        return function(*[shaped(operand, ctx.shape, ctx.dtype) for operand in (self, other)])

    return rule_


rule("aten.gcd.default")(_integers(_gcd))
rule("aten.lcm.default")(_integers(_lcm))


def _hypot(x: Any, y: Any) -> Any:
    import jax.numpy as jnp

    return jnp.hypot(x, y)


@rule("aten.hypot.default")
def hypot(ctx: Context, self: Value, other: Value) -> Value:
    operands = [shaped(operand, ctx.shape, wide(ctx.dtype)) for operand in (self, other)]
    return build.convert(emit_jax(ctx, _hypot, *operands)[0], ctx.dtype)


def _x_log(log: build.Builder) -> Rule:
    """Rule of x log(y), which is 0 if x is 0 and y is not NaN. Scalars are not rounded to the tensor's dtype first."""

    def product(x: Value, y: Value) -> Value:
        zero = build.logical_and(build.compare("eq", x, build.full_like(x, 0)), build.compare("eq", y, y))
        return build.select(zero, build.full_like(x, 0), build.multiply(x, build.unary(log, y)))

    return lambda ctx, self, other: computed(product, ctx.shape, ctx.dtype, self, other)


for _overload in ("Tensor", "Scalar_Other", "Scalar_Self"):
    rule(f"aten.xlogy.{_overload}")(_x_log(stablehlo.log))
for _overload in ("default", "other_scalar", "self_scalar"):
    rule(f"aten.special_xlog1py.{_overload}")(_x_log(stablehlo.log_plus_one))


def _ldexp(x: Any, exponent: Any) -> Any:
    import jax.numpy as jnp

    return jnp.ldexp(x, exponent)


@rule("aten.ldexp.Tensor")
def ldexp(ctx: Context, self: Value, other: Value) -> Value:
    """x 2^n. For integer n, ATen adds to the exponent, so that 2^n may overflow where the result does not."""
    within = wide(ctx.dtype)
    if other.dtype.is_floating_point or not self.dtype.is_floating_point:
        return computed(
            lambda x, n: build.multiply(x, build.binary(stablehlo.power, build.full_like(n, 2), n)),
            ctx.shape, ctx.dtype, self, other,
        )  # fmt: skip
    exponent = build.convert(shaped(other, ctx.shape, torch.int64), torch.int32)
    return build.convert(emit_jax(ctx, _ldexp, shaped(self, ctx.shape, within), exponent)[0], ctx.dtype)


# -- orthogonal polynomials, by three-term recurrences in n --------------------------------------------------------


HIGHEST_ORDER = 2.0**24
"""Polynomials of a higher order are NaN: each order is a loop step, and float32 does not count integers beyond it exactly."""


def _polynomial(x: Any, n: Any, *, family: str) -> Any:
    """The polynomial of degree n at x, elementwise, by a loop over degrees; `family` names the ATen op without `special_`."""
    import jax
    import jax.numpy as jnp

    shift = {"shifted_chebyshev_polynomial": True}.get(family[:-2], False)
    x = 2 * x - 1 if shift else x
    kind = family.removeprefix("shifted_")
    n = jnp.where(jnp.isfinite(n), jnp.trunc(n), -1)  # ATen casts non-finite n to int64, which is negative
    first = {
        "chebyshev_polynomial_t": x, "chebyshev_polynomial_u": x + x, "chebyshev_polynomial_v": x + x - 1,
        "chebyshev_polynomial_w": x + x + 1, "hermite_polynomial_h": x + x, "hermite_polynomial_he": x,
        "laguerre_polynomial_l": 1 - x, "legendre_polynomial_p": x,
    }[kind]  # fmt: skip

    def following(k: Any, before: Any, last: Any) -> Any:
        """P(k + 1) from P(k - 1) and P(k)."""
        if kind.startswith("chebyshev"):
            return (x + x) * last - before
        if kind == "hermite_polynomial_h":
            return 2 * (x * last - k * before)
        if kind == "hermite_polynomial_he":
            return x * last - k * before
        if kind == "laguerre_polynomial_l":
            return (((k + k) + (1 - x)) * last - k * before) / (k + 1)
        return ((k + k + 1) * x * last - k * before) / (k + 1)

    def step(carry: Any) -> Any:
        k, before, last, result = carry
        new = following(k, before, last)
        return k + 1, last, new, jnp.where(n == k + 1, new, result)

    one = jnp.ones_like(x)
    start = jnp.where(n < 0, 0, jnp.where(n == 0, one, first))
    counted = jnp.where(n > HIGHEST_ORDER, 0, n)

    def unfinished(carry: Any) -> Any:
        k, _, last, _ = carry
        return jnp.any((k < counted) & ~jnp.isnan(last))  # NaN after an overflow stays NaN

    k, _, last, found = jax.lax.while_loop(unfinished, step, (jnp.ones((), n.dtype), one, first, start))
    found = jnp.where(counted > k, last, found)
    if kind == "laguerre_polynomial_l":
        found = jnp.where((x == 0) & (n >= 0), 1, found)
    if kind == "legendre_polynomial_p":  # exact at both ends, where rounding errors of the recurrence would accumulate
        found = jnp.where((x == 1) & (n >= 0), 1, jnp.where((x == -1) & (n >= 0), 1 - 2 * (n % 2), found))
    return jnp.where(n > HIGHEST_ORDER, jnp.nan, found)


def _polynomial_rule(family: str) -> Rule:
    def rule_(ctx: Context, x: Any, n: Any) -> Value:
        operands = [shaped(operand, ctx.shape, ctx.dtype) for operand in (x, n)]
        if 0 in ctx.shape:
            return build.full(ctx.shape, ctx.dtype, 0)
        return emit_jax(ctx, _polynomial, *operands, family=family)[0]

    return rule_


for _family in (
    "chebyshev_polynomial_t", "chebyshev_polynomial_u", "chebyshev_polynomial_v", "chebyshev_polynomial_w",
    "shifted_chebyshev_polynomial_t", "shifted_chebyshev_polynomial_u", "shifted_chebyshev_polynomial_v",
    "shifted_chebyshev_polynomial_w", "hermite_polynomial_h", "hermite_polynomial_he", "laguerre_polynomial_l",
    "legendre_polynomial_p",
):  # fmt: skip
    for _overload in ("default", "x_scalar", "n_scalar"):
        rule(f"aten.special_{_family}.{_overload}")(_polynomial_rule(_family))
