"""Matrix factorizations as JAX functions of plain array operations, batched over leading dimensions.

They follow LAPACK's conventions (pivots from 1, Householder vectors below the diagonal, signs of R), so that results can be
compared entry by entry. Eigenvalues and singular values come from Jacobi's method (Golub and Van Loan, Matrix Computations,
8.5 and 8.6): every step is a matmul, which is fast on any PJRT device, and small values are accurate. Meant for the sizes in
models' graphs, not for thousands of rows. Shapes in docstrings are those of one matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from math import prod
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

Results = TypeVar("Results")

Pair = tuple[Array, Array]

SWEEPS = 30
"""Maximum number of Jacobi sweeps; five to ten are enough in practice."""
EXACT = lax.Precision.HIGHEST


def over_matrices(function: Callable[..., Results]) -> Callable[..., Results]:
    """Batches a function of matrices over leading dimensions [...], the same for all array operands; static: keyword arguments."""

    @wraps(function)
    def call(*arrays: Array, **static: bool | str) -> Results:
        lead = arrays[0].shape[:-2]
        one = lambda *parts: function(*parts, **static)  # noqa: E731
        if not lead:
            return one(*arrays)
        flat = [array.reshape(prod(lead), *array.shape[len(lead) :]) for array in arrays]
        if flat[0].shape[0] == 0:
            shapes = jax.eval_shape(one, *[jax.ShapeDtypeStruct(part.shape[1:], part.dtype) for part in flat])
            return jax.tree.map(lambda shape: jnp.zeros((*lead, *shape.shape), shape.dtype), shapes)
        return jax.tree.map(lambda result: result.reshape(*lead, *result.shape[1:]), jax.vmap(one)(*flat))

    return call


def dot(left: Array, right: Array) -> Array:
    """Matmul at full precision: a TPU's default rounds float32 operands to bfloat16."""
    return jnp.matmul(left, right, precision=EXACT)


# -- LU and Cholesky -----------------------------------------------------------------------------------------------


@over_matrices
def lu(a: Array, *, pivot: bool = True) -> tuple[Array, Array, Array]:
    """LU of [m, n] as getrf returns it, by Crout's method.

    Returns (L below and U on and above the diagonal [m, n], pivots int32 [min(m, n)] from 1, info int32: 0, or the first i from 1
    with U[i, i] == 0).
    """
    m, n = a.shape
    count = min(m, n)
    if count == 0:
        return a, jnp.zeros((0,), jnp.int32), jnp.zeros((), jnp.int32)
    rows, columns = jnp.arange(m), jnp.arange(n)

    def step(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        a, pivots, info = carry
        below = jnp.where(rows >= i, jnp.abs(a[:, i]), -1)
        chosen = jnp.argmax(below).astype(jnp.int32) if pivot else jnp.int32(i)
        order = jnp.where(rows == i, chosen, jnp.where(rows == chosen, i, rows))
        a = a[order]
        top = a[i, i]
        info = jnp.where((info == 0) & (top == 0), i + 1, info).astype(jnp.int32)
        factors = jnp.where(
            (rows > i) & (top != 0), a[:, i] / jnp.where(top == 0, 1, top), jnp.where(rows > i, a[:, i], 0)
        )
        a = a - factors[:, None] * jnp.where(columns > i, a[i], 0)[None, :]
        a = jnp.where((columns == i)[None, :] & (rows > i)[:, None], factors[:, None], a)
        return a, pivots.at[i].set(chosen + 1), info

    start = (a, jnp.zeros((count,), jnp.int32), jnp.zeros((), jnp.int32))
    return lax.fori_loop(0, count, step, start)


def permutation(pivots: Array, size: int) -> Array:
    """Converts pivots (from 1) to the permutation of rows, int32 [size]."""
    order = jnp.arange(size, dtype=jnp.int32)

    def step(i: Array, order: Array) -> Array:
        j = pivots[i] - 1
        return order.at[i].set(order[j]).at[j].set(order[i])

    return lax.fori_loop(0, pivots.shape[0], step, order) if pivots.shape[0] else order


def triangular(
    a: Array, b: Array, *, lower: bool, unit: bool = False, transposed: bool = False, left: bool = True
) -> Array:
    """Solves a x = b (left) or x a = b for a triangular `a` [..., n, n]. transposed: with aT for a. unit: a's diagonal is 1."""
    return lax.linalg.triangular_solve(a, b, left_side=left, lower=lower, unit_diagonal=unit, transpose_a=transposed)


@over_matrices
def lu_solve(lu_: Array, b: Array, pivots: Array, *, left: bool = True, adjoint: bool = False) -> Array:
    """Solves a x = b (left) or x a = b from the results of `lu`. pivots: [n, 1]. adjoint: with aT for a."""
    if b.size == 0:
        return b
    order = permutation(pivots[:, 0], lu_.shape[0])
    if left != adjoint:  # a x = b, or x aT = b, which is a xT = bT
        b = b if left else b.T
        x = triangular(lu_, triangular(lu_, b[order], lower=True, unit=True), lower=False)
        return x if left else x.T
    b = b if left else b.T  # aT x = b: uT lT p x = b
    x = triangular(lu_, triangular(lu_, b, lower=False, transposed=True), lower=True, unit=True, transposed=True)
    x = jnp.zeros_like(x).at[order].set(x)
    return x if left else x.T


@over_matrices
def lu_pivots_matrix(lu_: Array, pivots: Array) -> tuple[Array, Array, Array]:
    """Unpacks the results of `lu` to (P [m, m], L [m, k], U [k, n]) with a = P L U, k = min(m, n). pivots: [k, 1]."""
    m, n = lu_.shape
    count = min(m, n)
    lower = jnp.tril(lu_[:, :count], -1) + jnp.eye(m, count, dtype=lu_.dtype)
    order = permutation(pivots[:, 0], m)
    return jnp.eye(m, dtype=lu_.dtype)[order].T, lower, jnp.triu(lu_[:count])


@over_matrices
def determinant(lu_: Array, pivots: Array) -> tuple[Array, Array, Array]:
    """Returns (determinant, its sign, log of its absolute value), 0-d, from the results of `lu`. pivots: [n, 1]."""
    n = lu_.shape[0]
    swaps = jnp.sum(pivots[:, 0] != jnp.arange(1, n + 1)) % 2
    diagonal = jnp.diagonal(lu_)
    parity = jnp.where(swaps == 1, -1, 1).astype(lu_.dtype)
    unit = diagonal / jnp.abs(diagonal) if jnp.iscomplexobj(lu_) else jnp.sign(diagonal)
    unit = jnp.where(jnp.isnan(diagonal), 0, unit)  # torch.sgn of NaN
    return parity * jnp.prod(diagonal), parity * jnp.prod(unit), jnp.sum(jnp.log(jnp.abs(diagonal)))


@over_matrices
def cholesky(a: Array, *, upper: bool) -> tuple[Array, Array]:
    """Returns (the lower or upper factor [n, n], info int32: 0, or the order of the first leading minor that is not positive)."""
    n = a.shape[0]
    if n == 0:
        return a, jnp.zeros((), jnp.int32)
    a = a.T if upper else a
    rows = jnp.arange(n)

    def step(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        factor, info = carry
        row = jnp.where(rows < j, factor[j], 0)
        rest = a[:, j] - dot(factor, row)
        pivot = rest[j]
        info = jnp.where((info == 0) & ~(pivot > 0), j + 1, info).astype(jnp.int32)
        column = jnp.where(rows > j, rest / jnp.sqrt(pivot), jnp.where(rows == j, jnp.sqrt(pivot), 0))
        return jnp.where((rows == j)[None, :], column[:, None], factor), info

    factor, info = lax.fori_loop(0, n, step, (jnp.zeros_like(a), jnp.zeros((), jnp.int32)))
    return (factor.T if upper else factor), info


# -- QR ------------------------------------------------------------------------------------------------------------


@over_matrices
def geqrf(a: Array) -> tuple[Array, Array]:
    """Householder QR of [m, n] as LAPACK stores it: (R with the Householder vectors below the diagonal [m, n], tau [min(m, n)])."""
    m, n = a.shape
    count = min(m, n)
    rows, columns = jnp.arange(m), jnp.arange(n)
    a, scale = _scaled(a)

    def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        a, taus = carry
        column = a[:, i]
        alpha = column[i]
        rest = jnp.sqrt(jnp.sum(jnp.where(rows > i, column * column, 0)))
        beta = -jnp.where(alpha < 0, -1, 1).astype(a.dtype) * jnp.sqrt(alpha * alpha + rest * rest)
        nothing = rest == 0
        beta = jnp.where(nothing, alpha, beta)
        tau = jnp.where(nothing, 0, (beta - alpha) / jnp.where(nothing, 1, beta))
        vector = jnp.where(rows > i, column / jnp.where(nothing, 1, alpha - beta), jnp.where(rows == i, 1, 0))
        vector = vector.astype(a.dtype)
        product = jnp.where(columns > i, dot(vector, a), 0)
        a = a - tau * vector[:, None] * product[None, :]
        stored = jnp.where(rows > i, vector, jnp.where(rows == i, beta, a[:, i]))
        return jnp.where((columns == i)[None, :], stored[:, None], a), taus.at[i].set(tau)

    start = (a, jnp.zeros((count,), a.dtype))
    packed, taus = lax.fori_loop(0, count, step, start) if count else start
    return jnp.where(rows[:, None] > columns, packed, packed * scale), taus


@over_matrices
def reflect(a: Array, taus: Array, other: Array, *, transposed: bool = False) -> Array:
    """Multiplies `other` by Q (transposed: by QT), the product of the reflectors of `geqrf`. taus: [k, 1]."""
    count, rows = taus.shape[0], jnp.arange(a.shape[0])
    if not count:
        return other

    def step(index: Array, other: Array) -> Array:
        i = index if transposed else count - 1 - index
        vector = jnp.where(rows > i, a[:, i], jnp.where(rows == i, 1, 0)).astype(a.dtype)
        return other - taus[i, 0] * vector[:, None] * dot(vector, other)[None, :]

    return lax.fori_loop(0, count, step, other)


def qr(a: Array, *, mode: str) -> tuple[Array, Array]:
    """torch.linalg.qr: (Q, R), with an empty Q for mode "r". a: [..., m, n]; mode: "reduced", "complete" or "r"."""
    m, n = a.shape[-2:]
    packed, taus = geqrf(a)
    width = m if mode == "complete" else min(m, n)
    r = jnp.triu(packed[..., :width, :])
    if mode == "r":
        return jnp.zeros((0,), a.dtype), r
    start = jnp.broadcast_to(jnp.eye(m, width, dtype=a.dtype), (*a.shape[:-2], m, width))
    return reflect(packed, taus[..., None], start), r


# -- eigenvalues and singular values -------------------------------------------------------------------------------


def _scaled(a: Array) -> tuple[Array, Array]:
    """Returns (the matrices scaled to a largest magnitude of 1, so that squares do not overflow; the divisors [..., 1, 1])."""
    scale = jnp.max(jnp.abs(a), (-2, -1), keepdims=True, initial=0)
    scale = jnp.where((scale > 0) & jnp.isfinite(scale), scale, 1)
    return a / scale, scale


def _rounds(n: int) -> Array:
    """Pairs of a round-robin tournament, int32 [n - 1, n / 2, 2]: each pair of 0..n-1 once (n even)."""
    seats, rounds = list(range(n)), []
    for _ in range(n - 1):
        rounds.append([sorted((seats[i], seats[n - 1 - i])) for i in range(n // 2)])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return jnp.array(rounds, jnp.int32)


def _rotation(pairs: Array, cosine: Array, sine: Array, n: int) -> Array:
    """One matrix [n, n] of the Givens rotations of disjoint pairs [k, 2]; cosine, sine: [k]."""
    p, q = pairs[:, 0], pairs[:, 1]
    made = jnp.zeros((n, n), cosine.dtype)
    return made.at[p, p].set(cosine).at[q, q].set(cosine).at[p, q].set(sine).at[q, p].set(-sine)


def _angle(app: Array, aqq: Array, apq: Array) -> tuple[Array, Array]:
    """Returns (cosine, sine) of the Jacobi rotation that zeroes apq."""
    still = apq == 0
    theta = (aqq - app) / jnp.where(still, 1, 2 * apq)
    tangent = jnp.where(theta < 0, -1, 1) / (jnp.abs(theta) + jnp.sqrt(theta * theta + 1))
    tangent = jnp.where(still, 0, tangent)
    cosine = 1 / jnp.sqrt(tangent * tangent + 1)
    return cosine, tangent * cosine


def _sweeps(
    turn: Callable[[Pair, Array], Pair], rest: Callable[[Pair], Array], state: Pair, n: int, eps: float
) -> Pair:
    """Rotates all pairs until the off-diagonal residual is at most eps, for up to SWEEPS sweeps.

    turn: rotates the pairs of one round. rest: the residual of a state.
    """
    rounds = _rounds(n)

    def sweep(carry: tuple[Pair, Array]) -> tuple[Pair, Array]:
        state, count = carry
        return lax.fori_loop(0, n - 1, lambda i, state: turn(state, rounds[i]), state), count + 1

    return lax.while_loop(lambda carry: (rest(carry[0]) > eps) & (carry[1] < SWEEPS), sweep, (state, jnp.asarray(0)))[0]


@over_matrices
def eigh(a: Array, *, lower: bool) -> tuple[Array, Array]:
    """Returns (eigenvalues ascending [n], eigenvectors as columns [n, n]) of a symmetric matrix. lower: the triangle of `a` to read."""
    n = a.shape[0]
    if n == 0:
        return a[:, 0] if a.shape[1] else jnp.zeros((0,), a.dtype), a
    triangle = jnp.tril(a) if lower else jnp.triu(a)
    a = triangle + triangle.T - jnp.diag(jnp.diagonal(triangle))
    if n == 1:
        return a[0], jnp.ones_like(a)
    a, scale = _scaled(a)
    even = n + n % 2  # pads with a row of zeros, which no rotation changes
    padded = jnp.zeros((even, even), a.dtype).at[:n, :n].set(a)
    eps = float(jnp.finfo(a.dtype).eps)

    def turn(state: Pair, pairs: Array) -> Pair:
        a, v = state
        p, q = pairs[:, 0], pairs[:, 1]
        rotation = _rotation(pairs, *_angle(a[p, p], a[q, q], a[p, q]), even)
        a = dot(dot(rotation.T, a), rotation)
        return (a + a.T) / 2, dot(v, rotation)

    def rest(state: Pair) -> Array:
        a = state[0]
        scale = jnp.sqrt(jnp.sum(a * a))
        return jnp.sqrt(jnp.sum(jnp.where(jnp.eye(even, dtype=bool), 0, a) ** 2)) / jnp.where(scale == 0, 1, scale)

    a, v = _sweeps(turn, rest, (padded, jnp.eye(even, dtype=a.dtype)), even, eps)
    values = jnp.diagonal(a)[:n] * scale[0]
    order = jnp.argsort(values)
    return values[order], v[:n, :n][:, order]


@over_matrices
def _svd_square(a: Array) -> tuple[Array, Array, Array]:
    """One-sided Jacobi SVD of a square matrix: (U, S descending, V)."""
    n = a.shape[0]
    if n == 0:
        return a, jnp.zeros((0,), a.dtype), a
    even = n + n % 2
    eps = float(jnp.finfo(a.dtype).eps)
    padded = jnp.zeros((even, even), a.dtype).at[:n, :n].set(a)

    def turn(state: Pair, pairs: Array) -> Pair:
        a, v = state
        left, right = a[:, pairs[:, 0]], a[:, pairs[:, 1]]
        angle = _angle(jnp.sum(left * left, 0), jnp.sum(right * right, 0), jnp.sum(left * right, 0))
        rotation = _rotation(pairs, *angle, even)
        return dot(a, rotation), dot(v, rotation)

    def rest(state: Pair) -> Array:
        gram = dot(state[0].T, state[0])
        norms = jnp.sqrt(jnp.diagonal(gram))
        cosines = jnp.abs(gram) / jnp.where((scale := jnp.outer(norms, norms)) == 0, 1, scale)
        relevant = scale > (eps * jnp.max(norms)) ** 2
        return jnp.max(jnp.where(jnp.eye(even, dtype=bool) | ~relevant, 0, cosines))

    start = (padded, jnp.eye(even, dtype=a.dtype))
    a, v = _sweeps(turn, rest, start, even, 4 * eps) if even > 1 else start
    a, v = a[:n, :n], v[:n, :n]
    values = jnp.sqrt(jnp.sum(a * a, 0))
    order = jnp.argsort(-values)
    a, values, v = a[:, order], values[order], v[:, order]
    left = a / jnp.where(values == 0, 1, values)[None, :]
    q, r = qr(left, mode="reduced")  # completes the basis for columns of zeros
    signs = jnp.where(jnp.diagonal(r) < 0, -1, 1).astype(a.dtype)
    return q * signs[None, :], values, v


def svd(a: Array, *, full: bool) -> tuple[Array, Array, Array]:
    """torch.linalg.svd: (U, S descending, Vh) of [..., m, n]. full: square U and Vh."""
    m, n = a.shape[-2:]
    if m < n:
        u, s, vh = svd(jnp.swapaxes(a, -1, -2), full=full)
        return jnp.swapaxes(vh, -1, -2), s, jnp.swapaxes(u, -1, -2)
    a, scale = _scaled(a)
    q, r = qr(a, mode="complete" if full else "reduced")
    u, s, v = _svd_square(r[..., :n, :])
    if full and m > n:
        u = jnp.concatenate([dot(q[..., :n], u), q[..., n:]], -1)
    else:
        u = dot(q, u)
    return u, s * scale[..., 0], jnp.swapaxes(v, -1, -2)


def lstsq(a: Array, b: Array, *, rcond: float) -> tuple[Array, Array, Array]:
    """Solves a x = b by least squares, with the least norm. rcond: singular values up to rcond * the largest count as 0.

    Returns (x [..., n, k], rank int per matrix, singular values).
    """
    u, s, vh = svd(a, full=False)
    kept = s > rcond * jnp.max(s, -1, keepdims=True, initial=0)
    inverse = jnp.where(kept, 1 / jnp.where(kept, s, 1), 0)
    x = dot(jnp.swapaxes(vh, -1, -2), inverse[..., None] * dot(jnp.swapaxes(u, -1, -2), b))
    return x, jnp.sum(kept, -1), s


@over_matrices
def matrix_exp(a: Array) -> Array:
    """Matrix exponential by scaling and squaring a Taylor polynomial of degree 18 (error bound: Bader, Blanes, Casas 2019)."""
    n = a.shape[0]
    if n == 0:
        return a
    norm = jnp.max(jnp.sum(jnp.abs(a), 0))
    finite = jnp.isfinite(norm)  # infinite entries would give an infinite number of squarings
    squarings = jnp.where(finite & (norm > 1), jnp.ceil(jnp.log2(jnp.where(norm > 1, norm, 1))), 0).astype(jnp.int32)
    half = squarings // 2  # in two steps: the whole factor may overflow
    scaled = jnp.where(finite, a, jnp.nan)
    for steps in (half, squarings - half):
        scaled = scaled / (2.0 ** steps.astype(norm.dtype)).astype(a.dtype)
    eye = jnp.eye(n, dtype=a.dtype)
    total = eye
    for degree in range(18, 0, -1):
        total = eye + dot(scaled, total) / degree
    return lax.fori_loop(0, squarings, lambda _, x: dot(x, x), total)
