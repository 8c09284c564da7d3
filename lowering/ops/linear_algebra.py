"""Linear algebra: rules of torch.linalg's ops, with the algorithms in lowering/jax/linalg.py.

Operands are [..., m, n] with batch dimensions in front. Singular matrices, for which eager torch raises, set `info`, and results
hold infinities or NaN (docs/semantics.md). Complex matrices raise LoweringError where the algorithms are real.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import build
from ..emit.context import Context
from ..errors import LoweringError
from ..jax.emit import emit_jax
from ..registry import rule
from ..types import Value


def _algorithms() -> Any:
    from ..jax import linalg  # imports jax only if a rule needs it

    return linalg


def _real(ctx: Context, *operands: Value) -> None:
    """Raises LoweringError if an operand is complex."""
    if any(operand.dtype.is_complex for operand in operands):
        raise LoweringError(
            f"{ctx.target_op} of complex matrices needs LAPACK, which a portable module cannot call",
            next_step="split the matrices into real and imaginary parts",
        )


def _flipped(value: Value) -> Value:
    """Transposes the last two dimensions."""
    order = [*range(value.rank - 2), value.rank - 1, value.rank - 2]
    return build.transpose(value, order)


def _matched(value: Value, lead: tuple[int, ...], rank: int) -> Value:
    """Broadcasts all but the last `rank` dimensions to `lead`."""
    return build.broadcast(value, (*lead, *value.shape[value.rank - rank :]))


def _lead(*operands: tuple[Value, int]) -> tuple[int, ...]:
    """Broadcast batch dimensions of (operand, its number of core dimensions) pairs."""
    return tuple(torch.broadcast_shapes(*[operand.shape[: operand.rank - rank] for operand, rank in operands]))


def _column(value: Value) -> Value:
    """Appends a dimension of size 1."""
    return build.reshape(value, (*value.shape, 1))


# -- LU, determinants, solving -------------------------------------------------------------------------------------


@rule("aten.linalg_lu_factor_ex.default")
def lu_factor_ex(ctx: Context, A: Value, *, pivot: bool = True, check_errors: bool = False) -> list[Value]:
    _real(ctx, A)
    return emit_jax(ctx, _algorithms().lu, A, pivot=pivot)


@rule("aten.linalg_lu.default")
def lu(ctx: Context, A: Value, *, pivot: bool = True) -> list[Value]:
    _real(ctx, A)
    packed, pivots, _ = emit_jax(ctx, _algorithms().lu, A, pivot=pivot)
    p, lower, upper = emit_jax(ctx, _algorithms().lu_pivots_matrix, packed, _column(pivots))
    return [p if pivot else build.full(ctx.shape, ctx.dtype, 0), lower, upper]


@rule("aten.lu_unpack.default")
def lu_unpack(
    ctx: Context, LU_data: Value, LU_pivots: Value, unpack_data: bool = True, unpack_pivots: bool = True
) -> list[Value]:
    parts = emit_jax(ctx, _algorithms().lu_pivots_matrix, LU_data, _column(LU_pivots))
    types = [type_ for type_ in ctx.results if type_ is not None]
    return [part if part.type == type_ else build.full(*type_, 0) for part, type_ in zip(parts, types, strict=True)]


@rule("aten.linalg_lu_solve.default")
def lu_solve(ctx: Context, LU: Value, pivots: Value, B: Value, *, left: bool = True, adjoint: bool = False) -> Value:
    _real(ctx, LU, B)
    lead = _lead((LU, 2), (pivots, 1), (B, 2))
    LU, B, pivots = _matched(LU, lead, 2), _matched(B, lead, 2), _matched(pivots, lead, 1)
    return emit_jax(ctx, _algorithms().lu_solve, LU, B, _column(pivots), left=left, adjoint=adjoint)[0]


def _determinants(ctx: Context, A: Value) -> tuple[list[Value], Value, Value]:
    """([determinant, its sign, log of its absolute value], packed LU, pivots)."""
    _real(ctx, A)
    packed, pivots, _ = emit_jax(ctx, _algorithms().lu, A, pivot=True)
    return emit_jax(ctx, _algorithms().determinant, packed, _column(pivots)), packed, pivots


@rule("aten._linalg_det.default")
def det(ctx: Context, A: Value) -> list[Value]:
    (result, _, _), packed, pivots = _determinants(ctx, A)
    return [result, packed, pivots]


@rule("aten._linalg_slogdet.default")
def slogdet(ctx: Context, A: Value) -> list[Value]:
    (_, sign, logarithm), packed, pivots = _determinants(ctx, A)
    return [sign, logarithm, packed, pivots]


@rule("aten._linalg_solve_ex.default")
def solve_ex(ctx: Context, A: Value, B: Value, *, left: bool = True, check_errors: bool = False) -> list[Value]:
    _real(ctx, A, B)
    packed, pivots, info = emit_jax(ctx, _algorithms().lu, A, pivot=True)
    # as in torch, B is a batch of vectors if it is 1-d, or has the batch dimensions of A and one more
    vectors = B.rank == 1 or (A.rank - 1 == B.rank and B.shape == A.shape[:-1])
    right = _column(B) if vectors else B
    lead = _lead((A, 2), (right, 2))
    operands = _matched(packed, lead, 2), _matched(right, lead, 2), _column(_matched(pivots, lead, 1))
    (result,) = emit_jax(ctx, _algorithms().lu_solve, *operands, left=left or vectors, adjoint=False)
    return [build.reshape(result, ctx.shape), packed, pivots, info]


@rule("aten.linalg_inv_ex.default")
def inv_ex(ctx: Context, A: Value, *, check_errors: bool = False) -> list[Value]:
    _real(ctx, A)
    packed, pivots, info = emit_jax(ctx, _algorithms().lu, A, pivot=True)
    n = A.shape[-1]
    rows, columns = (build.iota((n, n), torch.int32, dim) for dim in (0, 1))
    eye = build.broadcast(build.convert(build.compare("eq", rows, columns), A.dtype), A.shape)
    (inverse,) = emit_jax(ctx, _algorithms().lu_solve, packed, eye, _column(pivots), left=True, adjoint=False)
    return [inverse, info]


@rule("aten.linalg_solve_triangular.default")
def solve_triangular(
    ctx: Context, self: Value, B: Value, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Value:
    lead = _lead((self, 2), (B, 2))
    operands = _matched(self, lead, 2), _matched(B, lead, 2)
    if 0 in ctx.shape:
        return build.full(ctx.shape, ctx.dtype, 0)
    return emit_jax(ctx, _algorithms().triangular, *operands, lower=not upper, unit=unitriangular, left=left)[0]


@rule("aten.triangular_solve.default")
def triangular_solve(
    ctx: Context, self: Value, A: Value, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> list[Value]:
    lead = _lead((self, 2), (A, 2))
    A, right = _matched(A, lead, 2), _matched(self, lead, 2)
    if 0 in ctx.shape:
        return [build.full(ctx.shape, ctx.dtype, 0), A]
    static = {"lower": not upper, "unit": unitriangular, "transposed": transpose}
    return [emit_jax(ctx, _algorithms().triangular, A, right, **static)[0], A]


# -- Cholesky ------------------------------------------------------------------------------------------------------


@rule("aten.linalg_cholesky_ex.default")
def cholesky_ex(ctx: Context, self: Value, *, upper: bool = False, check_errors: bool = False) -> list[Value]:
    _real(ctx, self)
    return emit_jax(ctx, _algorithms().cholesky, self, upper=upper)


@rule("aten.cholesky.default")
def cholesky(ctx: Context, self: Value, upper: bool = False) -> Value:
    _real(ctx, self)
    return emit_jax(ctx, _algorithms().cholesky, self, upper=upper)[0]


@rule("aten.cholesky_solve.default")
def cholesky_solve(ctx: Context, self: Value, input2: Value, upper: bool = False) -> Value:
    _real(ctx, self, input2)
    lead = _lead((self, 2), (input2, 2))
    factor, right = _matched(input2, lead, 2), _matched(self, lead, 2)
    if 0 in ctx.shape:
        return build.full(ctx.shape, ctx.dtype, 0)
    solve = _algorithms().triangular
    (half,) = emit_jax(ctx, solve, factor, right, lower=not upper, transposed=upper)
    return emit_jax(ctx, solve, factor, half, lower=not upper, transposed=not upper)[0]


@rule("aten.cholesky_inverse.default")
def cholesky_inverse(ctx: Context, self: Value, upper: bool = False) -> Value:
    n = self.shape[-1]
    rows, columns = (build.iota((n, n), torch.int32, dim) for dim in (0, 1))
    eye = build.broadcast(build.convert(build.compare("eq", rows, columns), self.dtype), self.shape)
    return cholesky_solve(ctx, eye, self, upper)


# -- QR ------------------------------------------------------------------------------------------------------------


@rule("aten.linalg_qr.default")
def qr(ctx: Context, A: Value, mode: str = "reduced") -> list[Value]:
    _real(ctx, A)
    return emit_jax(ctx, _algorithms().qr, A, mode=mode)


@rule("aten.geqrf.default")
def geqrf(ctx: Context, self: Value) -> list[Value]:
    _real(ctx, self)
    return emit_jax(ctx, _algorithms().geqrf, self)


@rule("aten.linalg_householder_product.default")
def householder_product(ctx: Context, input: Value, tau: Value) -> Value:
    _real(ctx, input)
    m, n = input.shape[-2:]
    rows, columns = (build.iota((m, n), torch.int32, dim) for dim in (0, 1))
    eye = build.broadcast(build.convert(build.compare("eq", rows, columns), input.dtype), input.shape)
    return emit_jax(ctx, _algorithms().reflect, input, _column(tau), eye, transposed=False)[0]


@rule("aten.ormqr.default")
def ormqr(ctx: Context, self: Value, input2: Value, input3: Value, left: bool = True, transpose: bool = False) -> Value:
    """self: Householder reflectors; input2: tau; input3: the matrix that Q multiplies."""
    _real(ctx, self, input3)
    other = input3 if left else _flipped(input3)
    (result,) = emit_jax(ctx, _algorithms().reflect, self, _column(input2), other, transposed=transpose == left)
    return result if left else _flipped(result)


# -- eigenvalues, singular values, least squares -------------------------------------------------------------------


@rule("aten._linalg_eigh.default")
def eigh(ctx: Context, A: Value, UPLO: str = "L", compute_v: bool = True) -> list[Value]:
    _real(ctx, A)
    return _as_stated(ctx, emit_jax(ctx, _algorithms().eigh, A, lower=UPLO.upper() == "L"))


@rule("aten._linalg_svd.default")
def svd(
    ctx: Context, A: Value, full_matrices: bool = False, compute_uv: bool = True, *, driver: str | None = None
) -> list[Value]:
    _real(ctx, A)
    return _as_stated(ctx, emit_jax(ctx, _algorithms().svd, A, full=full_matrices))


@rule("aten.linalg_lstsq.default")
def lstsq(ctx: Context, self: Value, b: Value, rcond: float | None = None, *, driver: str | None = None) -> list[Value]:
    _real(ctx, self, b)
    vectors = b.rank == self.rank - 1
    right = _column(b) if vectors else b
    lead = _lead((self, 2), (right, 2))
    m, n = self.shape[-2:]
    limit = torch.finfo(self.dtype).eps * max(m, n) if rcond is None else rcond
    a, right = _matched(self, lead, 2), _matched(right, lead, 2)
    x, rank, values = emit_jax(ctx, _algorithms().lstsq, a, right, rcond=float(limit))
    types = [type_ for type_ in ctx.results if type_ is not None]
    product = build.dot_general(
        a, x, contract=([a.rank - 1], [x.rank - 2]), batch=(list(range(len(lead))),) * 2, dtype=a.dtype
    )
    error = build.subtract(right, product)
    squares = build.reduce_with(build.add, build.multiply(error, error), 0, [error.rank - 2])
    parts = [build.reshape(x, types[0].shape), squares, build.convert(rank, torch.int64), values]
    return [
        part if part.type == type_ else build.full(*type_, 0) if 0 in type_.shape else build.reshape(part, type_.shape)
        for part, type_ in zip(parts, types, strict=True)
    ]


@rule("aten.linalg_matrix_exp.default")
def matrix_exp(ctx: Context, self: Value) -> Value:
    return emit_jax(ctx, _algorithms().matrix_exp, self)[0]


def _as_stated(ctx: Context, parts: list[Value]) -> list[Value]:
    """Results with the graph's types: parts that were not requested are empty tensors there."""
    types = [type_ for type_ in ctx.results if type_ is not None]
    return [part if part.type == type_ else build.full(*type_, 0) for part, type_ in zip(parts, types, strict=True)]
