"""Operands that the cases of several families share."""

# ruff: noqa: E741  (i makes integers)

from __future__ import annotations

import torch

INF, NAN = float("inf"), float("nan")

torch.manual_seed(0)


def f(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape).to(dtype)


def i(*shape: int, low: int = -9, high: int = 10, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.randint(low, high, shape).to(dtype)


def b(*shape: int) -> torch.Tensor:
    return torch.rand(shape) > 0.5


def positive(size: int, batch: int = 2) -> torch.Tensor:
    """Symmetric, positive definite matrices."""
    x = torch.randn(batch, size, size)
    return x @ x.mT + torch.eye(size)


SPECIAL = torch.tensor(
    [[0.0, -0.0, 0.5, -0.5, 1.0, -1.0], [1.5, 2.5, -2.5, INF, -INF, NAN], [1e-3, 3.7, -8.2, 30.0, 0.9, 2.0]]
)

COMPLEX = torch.tensor([[0.5 - 1j, 2.5j, -3.0, 1 + 1j], [-1 + 4j, 30.0, -8 - 8j, 2 - 30j]])

UNARY = [
    SPECIAL,
    SPECIAL.to(torch.bfloat16),
    SPECIAL.to(torch.float16),
    SPECIAL.t(),
    torch.tensor(0.25),
    torch.empty(0, 3),
    i(3, 4),
    i(5, dtype=torch.int8),
    i(4, low=0, dtype=torch.uint8),
    b(3, 2),
    torch.complex(f(2, 3), f(2, 3)),
    f(3, dtype=torch.float64),
]

X, Y = (
    SPECIAL,
    torch.tensor([[2.0, -3.0, NAN, 0.5, 0.0, -0.0], [1.5, INF, 2.0, INF, 1.0, 2.0], [0.3, -7.0, 2.0, 3.0, -0.9, 5.0]]),
)

I, J = i(3, 4), torch.tensor([[1, 2, 3, -1], [-2, -3, 5, 7], [4, -4, 1, 2]])

BINARY = [
    (X, Y),
    (X.to(torch.bfloat16), Y.to(torch.bfloat16)),
    (X, Y[:, :1]),
    (X[0], torch.tensor(2.0)),
    (torch.tensor(1.5), Y),
    (I, J),
    (I.to(torch.int8), J.to(torch.int8)),
    (I, J.to(torch.int32)),
    (I, J + 0.5),
    (b(3, 4), b(4)),
    (b(3, 6), X),
    (X, b(6)),
    (torch.empty(0, 4), torch.empty(1, 4)),
    (X.to(torch.float16), torch.tensor(0.1, dtype=torch.float64)),
    (i(3, low=0, dtype=torch.uint8), torch.tensor([1, 2, 200], dtype=torch.uint8)),
]

SCALARS = [
    (X, 2),
    (X, -0.5),
    (X.to(torch.bfloat16), 0.1),
    (I, 3),
    (I, -2),
    (I, 2.5),
    (b(3), True),
    (b(3), 2),
    (torch.tensor(3), 2),
    (i(4, dtype=torch.int8), -3),
]

G = torch.Generator().manual_seed(0)

IMAGE, WAVE, VOLUME = f(2, 3, 6, 7), f(2, 3, 9), f(1, 2, 4, 5, 6)

INFINITE = IMAGE.masked_fill(torch.arange(7) == 6, float("inf"))

BYTES = torch.arange(252, dtype=torch.uint8).reshape(2, 3, 6, 7) * 37

KEYS, TABLE, DUPLICATES = torch.tensor([2, 0, 1]), f(3, 5), torch.tensor([[3, 1, 3, 1], [2, 2, 9, 9], [0, 5, 0, 5]])

MATRIX, SQUARES = f(4, 3), f(2, 3, 3) + 3 * torch.eye(3)

LU, PIVOTS, _ = torch.linalg.lu_factor_ex(SQUARES)

LOWER = torch.linalg.cholesky(positive(3))

SIZES = {"dtype": torch.float32}

EIGHT = f(16, 16).to(torch.float8_e4m3fn)

UNUSED_PRODUCTS = [
    (f(3, 2), torch.full((3, 4), NAN, dtype=dtype), f(4, 2, dtype=dtype), {"alpha": 0, "beta": beta})
    for dtype in (torch.float32,)
    for beta in (0, 2)
]

"""What stands for eager torch where its CPU kernels lack the op."""

"""Rules of ops that are there only where another package is imported, and the file that tests them."""
