"""The differential cases of the rules: for every overload that has one, the calls on which it is compared with eager torch.

Rules of one shape of schema share their operands (`UNARY`, `BINARY`, ...); the others are written out. An overload without a case
fails tests/lowering/test_cases.py. What only a trace makes (control flow, mutation, `fxhlo::` ops) is tested in files of its own.
"""

# ruff: noqa: E501, E741, B008  (a table: a row an overload)

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from overloads import Call, same

from fxhlo.lowering.registry import rules

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
    SPECIAL, SPECIAL.to(torch.bfloat16), SPECIAL.to(torch.float16), SPECIAL.t(), torch.tensor(0.25), torch.empty(0, 3), i(3, 4),
    i(5, dtype=torch.int8), i(4, low=0, dtype=torch.uint8), b(3, 2), torch.complex(f(2, 3), f(2, 3)), f(3, dtype=torch.float64),
]  # fmt: skip
X, Y = (
    SPECIAL,
    torch.tensor([[2.0, -3.0, NAN, 0.5, 0.0, -0.0], [1.5, INF, 2.0, INF, 1.0, 2.0], [0.3, -7.0, 2.0, 3.0, -0.9, 5.0]]),
)
I, J = i(3, 4), torch.tensor([[1, 2, 3, -1], [-2, -3, 5, 7], [4, -4, 1, 2]])
BINARY = [
    (X, Y), (X.to(torch.bfloat16), Y.to(torch.bfloat16)), (X, Y[:, :1]), (X[0], torch.tensor(2.0)), (torch.tensor(1.5), Y), (I, J),
    (I.to(torch.int8), J.to(torch.int8)), (I, J.to(torch.int32)), (I, J + 0.5), (b(3, 4), b(4)), (b(3, 6), X), (X, b(6)), (torch.empty(0, 4), torch.empty(1, 4)),
    (X.to(torch.float16), torch.tensor(0.1, dtype=torch.float64)), (i(3, low=0, dtype=torch.uint8), torch.tensor([1, 2, 200], dtype=torch.uint8)),
]  # fmt: skip
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

# The domain of functions that are slow to converge, or differ from torch, far outside of it.
DOMAINS: dict[str, list[torch.Tensor]] = {
    name: [torch.tensor([0.1, 0.5, 1.0, 2.5, 7.0, 20.0]), torch.tensor([0.5, 2.0]).to(torch.bfloat16), i(4, low=1)]
    for name in (
        "aten.special_bessel_y0.default", "aten.special_bessel_y1.default", "aten.special_modified_bessel_k0.default",
        "aten.special_modified_bessel_k1.default", "aten.special_scaled_modified_bessel_k0.default",
        "aten.special_scaled_modified_bessel_k1.default", "aten.special_airy_ai.default", "aten.special_bessel_j0.default",
        "aten.special_bessel_j1.default", "aten.special_spherical_bessel_j0.default", "aten.special_modified_bessel_i0.default",
        "aten.special_modified_bessel_i1.default", "aten.i0.default", "aten.special_i0e.default", "aten.special_i1.default",
        "aten.special_i1e.default",
    )
}  # fmt: skip
DOMAINS |= {
    "aten.linalg_matrix_exp.default": [f(2, 3, 3), f(1, 1), torch.tensor([[[1.0, INF], [0, 1]], [[3e38, 0], [0, 1]], [[50, 20], [0, -80]]])],
    "aten._neg_view.default": [X, X.to(torch.bfloat16), i(3, 4), torch.complex(f(2), f(2))],
    "aten.view_as_complex.default": [f(3, 2)], "aten.view_as_complex_copy.default": [f(3, 2)],
    "aten.digamma.default": [X[2:], f(4)], "aten.lgamma.default": [X[2:], f(4)],
    "aten.max.default": [*UNARY[:5], i(3)], "aten.min.default": [*UNARY[:5], i(3)],
    "aten.t.default": [f(2, 3), f(4), f()], "aten.t_copy.default": [f(2, 3), f(4)],
    "aten.squeeze.default": [f(1, 3, 1), f()], "aten.squeeze_copy.default": [f(1, 3, 1)],
}  # fmt: skip
PAIRS: dict[str, list[tuple]] = {
    "aten.floor_divide.default": [(X, Y), (I, J), (I.to(torch.int8), J.to(torch.int8)), (X.to(torch.bfloat16), Y.to(torch.bfloat16))],
    "aten.fmod.Tensor": [(X, Y), (I, J)],
    "aten.remainder.Tensor": [(X, Y), (I, J), (I, J.to(torch.int32)), (X.to(torch.bfloat16), Y.to(torch.bfloat16))],
    "aten.gcd.default": [(I, J), (I.to(torch.int8), J.to(torch.int8))], "aten.lcm.default": [(I, J)],
    "aten.igamma.default": [(f(5).abs() + 0.1, f(5).abs())], "aten.igammac.default": [(f(5).abs() + 0.1, f(5).abs())],
    "aten.special_zeta.default": [(f(5).abs() + 1.5, f(5).abs() + 0.5)],
    "aten.vdot.default": [(f(5), f(5)), (torch.complex(f(4), f(4)), torch.complex(f(4), f(4)))],
    "aten.mm.default": [(f(3, 4), f(4, 2)), (f(3, 4).bfloat16(), f(4, 2).bfloat16()), (i(2, 3), i(3, 2)), (f(0, 3), f(3, 2)), (f(2, 0), f(0, 3))],
    "aten.bmm.default": [(f(2, 3, 4), f(2, 4, 2)), (f(2, 0, 4), f(2, 4, 2))], "aten._int_mm.default": [(i(32, 8, dtype=torch.int8), i(8, 16, dtype=torch.int8))],
    "aten.dot.default": [(f(4), f(4)), (i(3), i(3))], "aten.mv.default": [(f(3, 4), f(4)), (i(2, 3), i(3))],
    "aten.nextafter.default": [(f(4), f(4)), (X, Y)], "aten.complex.default": [(f(3), f(3))], "aten.polar.default": [(f(3), f(3))],
}  # fmt: skip
for _name in rules():
    if ("_shift" in _name or "shift__" in _name) and "polynomial" not in _name:
        _counts = torch.tensor([[0, 1, 5, 63], [2, 3, 40, 1], [4, 6, 1, 2]])
        PAIRS[_name] = {
            "Tensor": [(I, _counts), (I.to(torch.int8), (_counts % 7).to(torch.int8)), (i(3, low=0, dtype=torch.uint8), torch.tensor([1, 2, 7], dtype=torch.uint8))],
            "Scalar_Tensor": [(-5, _counts)],
        }.get(_name.split(".")[2], [(I, 3), (I, 0)])  # fmt: skip
    elif _name.startswith("aten.bitwise_") and _name.endswith("Scalar_Tensor"):
        PAIRS[_name] = [(5, I), (True, b(3))]
    elif _name.startswith("aten.special_") and "polynomial" in _name:
        _x, _n = torch.tensor([-1.5, -1.0, 0.3, 1.0, 2.0]), torch.tensor([0.0, 1.0, 2.0, 5.0, 3.0])
        PAIRS[_name] = {
            "default": [(_x, _n)],
            "x_scalar": [(0.3, torch.cat([_n, torch.tensor([INF, -INF, NAN])]))],
            "n_scalar": [(_x, 4)],
        }[_name.split(".")[2]]
PAIRS |= {
    "aten.remainder.Scalar_Tensor": [(7, J), (7.5, Y)], "aten.special_zeta.self_scalar": [(2.5, f(4).abs() + 0.5)],
    "aten.special_zeta.other_scalar": [(f(4).abs() + 1.5, 0.5)], "aten.floor_divide.Scalar": [(X, 2), (I, -3), (I, 2.5)],
    "aten.fmod.Scalar": [(X, 2), (I, -3), (I, 2.5)],
}  # fmt: skip

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


def _reconstructed(a: torch.Tensor, *others: torch.Tensor) -> Any:
    """Factors whose signs are free, as the product that they stand for."""
    return (a.abs(), *[other.abs() for other in others])


def _r(q: torch.Tensor, r: torch.Tensor) -> Any:
    return q @ r, r.abs()


def _svd(u: torch.Tensor, s: torch.Tensor, vh: torch.Tensor) -> Any:
    return (u * s.unsqueeze(-2)) @ vh, s


def _eigh(values: torch.Tensor, vectors: torch.Tensor) -> Any:
    return values, (vectors * values.unsqueeze(-2)) @ vectors.mT


def _lengths(*results: torch.Tensor) -> Any:
    """dtype and shape alone, for values that nobody promises."""
    return [torch.zeros_like(result) for result in results]


UNUSED_PRODUCTS = [(f(3, 2), torch.full((3, 4), NAN, dtype=dtype), f(4, 2, dtype=dtype), {"alpha": 0, "beta": beta}) for dtype in (torch.float32,) for beta in (0, 2)]

# overload -> argument tuples; a dict at the end of one holds keyword arguments
CASES: dict[str, list[tuple]] = {
    # arithmetic
    **{name: [*[(*pair, {}) for pair in BINARY if pair[0].dtype != torch.bool or "add" in name], (X, Y, {"alpha": 0.5}), (I, J, {"alpha": -2})] for name in ("aten.add.Tensor", "aten.sub.Tensor", "aten.rsub.Tensor")},
    **{name: [(X, 2), (X.to(torch.bfloat16), 0.1), (I, 3, 2), (I, 2.5), (torch.tensor(2), 3)] for name in ("aten.add.Scalar", "aten.sub.Scalar", "aten.rsub.Scalar")},
    "aten.div.Tensor_mode": [(*pair, {"rounding_mode": mode}) for mode in (None, "floor", "trunc") for pair in ((X, Y), (I, J), (I, J.to(torch.int8)), (X.bfloat16(), Y.bfloat16()))],
    "aten.div.Scalar_mode": [(x, other, {"rounding_mode": mode}) for mode in (None, "floor", "trunc") for x, other in ((X, 2), (I, -3), (I, 2.5), (X.bfloat16(), 0.3))],
    "aten.pow.Scalar": [(2, X), (-2.5, f(4)), (2, i(4, low=0)), (0, i(3, low=0)), (True, b(3)), (2, torch.arange(60, 70)), (-1, I)],
    "aten.pow.Tensor_Scalar": [(X, e) for e in (0, 1, 2, 3, 0.5, -0.5, -1, -2, 2.7, 10, -3)] + [(I, 2), (I, 5), (I, 0), (I, 64), (I.to(torch.int32), 1001), (I, 0.5), (I.to(torch.int8), 3), (X.bfloat16(), 2), (X.bfloat16(), -1), (f(2).to(torch.complex64), 2), (COMPLEX[0], 2 - 1j)],
    "aten.pow.Tensor_Tensor": [(X, Y), (I, J.abs()), (I, J.abs() + 0.5), (X.bfloat16(), Y.bfloat16()), (b(4), b(4)), (X, torch.tensor(2)), (i(3, 4), torch.tensor([0, -3, 127, 2**62 + 5])), (i(3, 1, dtype=torch.int8), torch.tensor([-2, 64, 127], dtype=torch.int8)), (i(3, 1, low=0, dtype=torch.uint8), torch.tensor([3, 65, 255], dtype=torch.uint8))],
    "aten.polygamma.default": [(n, torch.tensor([0.5, 1.0, 2.5, 7.0])) for n in (0, 1, 2, 4)] + [(1, i(3, low=1))],
    "aten.round.decimals": [(X, {"decimals": d}) for d in (0, 1, -1, 3)] + [(I, {"decimals": 2}), (X.bfloat16(), {"decimals": 1})],
    "aten.gelu.default": [(x, {"approximate": how}) for x in (f(4), X[::2].bfloat16(), f(0)) for how in ("none", "tanh")],  # of inf, eager gives NaN or inf by the element's place
    "aten.clamp.default": [(X, -1.0, 1.0), (X, 0.5), (X, None, 0.5), (X, 1.0, -1.0), (I, -2, 3), (I, 0.5, 3), (X.bfloat16(), -0.3, 0.3), (i(4, dtype=torch.int8), -100, 100)],
    "aten.clamp.Tensor": [(X, Y, Y + 1), (X, Y[0]), (X, None, torch.tensor(0.5)), (I, J, J + 2), (I, J + 0.5)],
    "aten.clamp_min.default": [(X, 0.5), (I, 2)], "aten.clamp_min.Tensor": [(X, Y), (I, J)],
    "aten.clamp_max.default": [(X, 0.5), (I, 2)], "aten.clamp_max.Tensor": [(X, Y), (I, J)],
    "aten.frexp.Tensor": [(torch.tensor([0.0, -0.0, 1.0, -3.5, 1e-3, 1024.0, 0.75]),), (f(4).bfloat16(),)],
    # reductions
    "aten.sum.default": [(x,) for x in (X[0], X.bfloat16()[0], I, b(4), f(), torch.empty(0, 3), i(3, dtype=torch.int8))] + [(I, {"dtype": torch.float32}), (f(3), {"dtype": torch.int32})],
    "aten.mean.default": [(f(3, 4),), (f(3, 4).bfloat16(),), (f(),), (f(0),), (I, {"dtype": torch.float32})],
    "aten.prod.default": [(f(3, 2),), (i(4, low=1),), (i(4, low=1, dtype=torch.int8),), (f(0),), (b(3),), (f(3).bfloat16(),)],
    **{name: [(f(2, 3, 4), [1]), (f(2, 3, 4), [-1, 0], True), (f(2, 3, 4), None), (f(2, 3, 4), []), (f(2, 0, 4), [1]), (f(2, 3).bfloat16(), [0]), (f(), [0]), (I, [1], False, {"dtype": torch.float32})] for name in ("aten.sum.dim_IntList", "aten.mean.dim")},
    "aten.prod.dim_int": [(f(2, 3), 0), (f(2, 3), -1, True), (i(2, 3), 1), (f(2, 0), 1), (b(2, 3), 1), (f(), 0)],
    **{name: [(x, 0) for x in (b(2, 3), I, X, f(0, 3), torch.tensor(True), i(2, 2, low=0, dtype=torch.uint8))] + [(b(2, 3), -1, True)] for name in ("aten.any.dim", "aten.all.dim")},
    **{name: [(b(2, 3, 2), dims, keep) for dims, keep in (([0, 2], False), (None, True), ([], False), ([-1], True))] for name in ("aten.any.dims", "aten.all.dims")},
    **{name: [(X, [1]), (X, [], True), (I, [0, 1]), (b(3, 4), [0]), (X.bfloat16(), [-1], True), (f(), []), (f(0, 3), [1]), (i(3, dtype=torch.int8), [0])] for name in ("aten.amax.default", "aten.amin.default")},
    "aten.aminmax.default": [(X,), (X, {"dim": 1}), (I, {"dim": 0, "keepdim": True}), (b(3, 4), {"dim": 1})],
    **{name: [(X, 1), (X, 0, True), (I, -1), (DUPLICATES, 1), (b(3, 4), 0), (f(), 0), (X.bfloat16(), 1), (f(0, 3), 1)] for name in ("aten.max.dim", "aten.min.dim")},
    **{name: [(X, 1), (X,), (X, 0, True), (DUPLICATES, -1), (DUPLICATES,), (f(),), (X.bfloat16(), 1), (X.t(), None, True)] for name in ("aten.argmax.default", "aten.argmin.default")},
    **{name: [(f(3, 4), [1]), (f(3, 4), None, {"correction": 0}), (f(3, 4), [0, 1], {"correction": 1, "keepdim": True}), (f(3, 4).bfloat16(), [1]), (f(3, 1), [1]), (f(3), [0], {"correction": 5}), (f(3, 4).double(), [0], {"correction": 0.5}), (SPECIAL[:2, :5] + 1j, [1])] for name in ("aten.var.correction", "aten.std.correction", "aten.var_mean.correction")},
    "aten.logsumexp.default": [(COMPLEX, [0]), (f(3, 4), [1]), (X, [0]), (f(3, 4), [0, 1], True), (f(2).bfloat16(), [0]), (torch.full((2, 2), -INF), [1]), (I, [1])],
    **{name: [(f(3, 4), 0), (f(3, 4), -1), (X, 1), (f(2, 0), 1), (f(), 0), (f(5).bfloat16(), 0), (COMPLEX, 1)] for name in ("aten.cumsum.default", "aten.cumprod.default", "aten.logcumsumexp.default")},
    **{name: [(X, 1), (DUPLICATES, 0), (DUPLICATES, -1), (f(), 0), (b(4), 0), (X.bfloat16(), 1)] for name in ("aten.cummax.default", "aten.cummin.default")},
    # orders
    "aten.sort.default": [(X, 1), (X, 0, True), (f(), -1), (f(0, 3), 0), (b(5), 0), (i(4, dtype=torch.int8),)],
    "aten.sort.stable": [(DUPLICATES, {"stable": True, "descending": down, "dim": dim}) for down in (False, True) for dim in (0, -1)] + [(X, {"stable": True}), (X.bfloat16(), {"stable": True, "descending": True})],
    "aten.topk.default": [(f(3, 5), 2), (f(3, 5), 3, 0, False), (torch.tensor(2.0), 1), (X[2:], 6), (i(6, high=90), 2), (f(2, 4), 0)],
    "aten.kthvalue.default": [(f(3, 5), 2), (f(3, 5), 1, 0, True), (f(), 1)],
    "aten.median.dim": [(X, 1), (f(3, 5), 0, True), (f(), 0), (i(5, high=90), 0)], "aten.nanmedian.dim": [(X, 1), (f(3, 4), -1)],
    "aten.mode.default": [(DUPLICATES, 1), (DUPLICATES, 0, True), (f(), -1)],
    **{name: [(SPECIAL, SPECIAL.flip(1)), (SPECIAL.bfloat16(), SPECIAL[0].bfloat16()), (I, torch.tensor([[2], [3]]))] for name in ("aten.xlogy.Tensor", "aten.special_xlog1py.default")},
    **{name: [(SPECIAL, 2.5), (torch.arange(4), 2.5), (SPECIAL, NAN), (SPECIAL.bfloat16(), 0.1)] for name in ("aten.xlogy.Scalar_Other", "aten.special_xlog1py.other_scalar")},
    **{name: [(2.5, SPECIAL), (2.5, torch.arange(4)), (0, SPECIAL), (0.1, SPECIAL.bfloat16())] for name in ("aten.xlogy.Scalar_Self", "aten.special_xlog1py.self_scalar")},
    "aten.ldexp.Tensor": [(SPECIAL, torch.tensor([[0], [3], [-2]])), (torch.tensor([1e-30, 3e38, 0.0, INF]), torch.tensor([130, -130, 200, -(2**63)])), (SPECIAL.bfloat16(), torch.tensor(3)), (SPECIAL, torch.tensor([0.5] * 6)), (torch.arange(3), torch.tensor([2, -1, 4]))],
    "aten.searchsorted.Tensor": [(torch.tensor([1.0, 3, 5, 7]), f(2, 3) * 4), (torch.tensor([1.0, 3, 3, 7]), torch.tensor([3.0, NAN, INF]), {"right": True}), (torch.arange(8.0).reshape(2, 4), f(2, 3) * 4, {"side": "right", "out_int32": True}), (torch.tensor([5, 1, 3]), torch.tensor([2, 5]), {"sorter": torch.tensor([1, 2, 0])}), (torch.tensor([1.0, 2, NAN, NAN]), SPECIAL[1]), (torch.tensor([3, 1, 2, 5, 4, 0]), torch.arange(7), {"right": True}), (torch.tensor([]), torch.zeros(2)), (torch.arange(5).to(torch.uint8), torch.tensor([7, -1]))],
    "aten.searchsorted.Scalar": [(torch.tensor([1.0, 3, 5]), 3), (torch.tensor([1, 3, 5]), 3, {"right": True}), (torch.tensor([1, 2, 3]), 2.5)],
    "aten.bucketize.Tensor": [(f(2, 3) * 4, torch.tensor([-2.0, 0, 2])), (I, torch.tensor([-2, 0, 2]), {"right": True, "out_int32": True})],
    "aten.bucketize.Scalar": [(2.5, torch.tensor([1, 2, 3])), (1.5, torch.tensor([-2.0, 0, 2])), (0, torch.tensor([-2, 0, 2]), {"right": True})],
    # views and moves
    **{f"aten.{name}.default": [(f(2, 3), [3, 2]), (f(2, 3), [-1]), (f(0, 3), [3, 0])] for name in ("view", "_unsafe_view", "view_copy", "reshape")},
    **{f"aten.{name}.default": [(f(2, 3), [3, 2], [2, 1])] for name in ("_reshape_alias", "_reshape_alias_copy")},
    **{f"aten.{name}.dim": [(f(1, 3, 1), 0), (f(1, 3, 1), 1), (f(1, 3), -2), (f(), 0)] for name in ("squeeze", "squeeze_copy")},
    **{f"aten.{name}.dims": [(f(1, 3, 1), [0, -1]), (f(1, 3, 1), [])] for name in ("squeeze", "squeeze_copy")},
    **{f"aten.{name}.default": [(f(2, 3), 0), (f(2, 3), -1), (f(), 0)] for name in ("unsqueeze", "unsqueeze_copy")},
    "aten.clone.default": [(IMAGE, {"memory_format": torch.channels_last}), (f(2, 3).t(),)], "aten.contiguous.default": [(f(2, 3).t(),)], "prims.copy_strided.default": [(f(2, 3), [1, 2])],
    "aten.copy.default": [(f(2, 3), f(3)), (I, f(3, 4)), (b(2, 3), f(2, 3))],
    **{f"aten.{name}.default": [(f(3), [2, 3]), (f(2, 1), [-1, 4]), (f(1), [0]), (f(), [2, 2])] for name in ("expand", "expand_copy")},
    "aten.repeat.default": [(f(2, 3), [2, 1]), (f(3), [2, 2]), (f(3), [0]), (f(), [3]), (b(2), [2])],
    "aten.repeat_interleave.self_int": [(f(2, 3), 2), (f(2, 3), 2, -1), (f(2, 3), 0, 0)],
    **{f"aten.{name}.default": [(f(2, 3, 4), [2, 0, 1]), (f(2, 3, 4), [-1, 1, 0]), (f(), [])] for name in ("permute", "permute_copy")},
    **{f"aten.{name}.int": [(f(2, 3, 4), 0, -1), (f(), 0, -1)] for name in ("transpose", "transpose_copy")},
    "aten.flip.default": [(f(2, 3), [0]), (f(2, 3), [-1, 0]), (f(2, 3), []), (f(), [])],
    "aten.roll.default": [(f(2, 3), [1]), (f(2, 3), [1, -2], [0, 1]), (f(2, 3), [7], [-1]), (f(0, 3), [1], [0]), (f(), [1])],
    **{f"aten.{name}.Tensor": [(f(5, 4), 0, 1, 4), (f(5, 4), -1, -3, 9223372036854775807), (f(5, 4), 0, 4, 2), (f(5, 4), 0, 0, 5, 2), (f(5, 4), 0, -100, 100, 3)] for name in ("slice", "slice_copy")},
    **{f"aten.{name}.default": [(f(5, 4), 0, 1, 3), (f(5, 4), -1, -2, 2), (f(5, 4), 0, 5, 0)] for name in ("narrow", "narrow_copy")},
    **{f"aten.{name}.int": [(f(5, 4), 0, 2), (f(5, 4), -1, -1)] for name in ("select", "select_copy")},
    **{f"aten.{name}.default": [(f(5, 4), [1, 4], 0), (f(5, 4), [2, 0, 2], -1)] for name in ("split_with_sizes", "split_with_sizes_copy", "unsafe_split_with_sizes")},
    **{f"aten.{name}.Tensor": [(f(5, 4), 2), (f(5, 4), 3, -1)] for name in ("split", "split_copy", "unsafe_split")},
    **{f"aten.{name}.default": [(f(5, 4), 2), (f(5, 4), 3, -1)] for name in ("chunk", "unsafe_chunk")},
    **{f"aten.{name}.int": [(f(3, 2),), (f(3, 2), -1)] for name in ("unbind", "unbind_copy")},
    **{f"aten.{name}.default": [(f(3, 4),), (f(3, 4), 1), (f(3, 4), -2), (f(2, 3, 4), 1, -1, 0), (f(3, 4), 7)] for name in ("diagonal", "diagonal_copy")},
    **{f"aten.{name}.default": [(f(3, 7), 1, 3, 2), (f(9), 0, 2, 1), (f(3, 7), 0, 3, 1), (f(), 0, 1, 1), (f(8), 0, 4, 4)] for name in ("unfold", "unfold_copy")},
    "aten.cat.default": [([f(2, 3), f(1, 3)],), ([f(2, 3), f(2, 1)], -1), ([f(2, 3), i(1, 3)],), ([f(0), f(2, 3)],), ([b(2), i(2)],), ([f(2, 0), f(2, 0)], 1)],
    "aten.stack.default": [([f(2, 3), f(2, 3)],), ([f(2), i(2)], -1), ([f(), f()],)],
    "aten.constant_pad_nd.default": [(f(2, 3), [1, 2]), (f(2, 3), [1, -1, -1, 2], 5.0), (i(3), [2, 0], 7), (b(3), [1, 1], True), (f(0, 2), [0, 0, 1, 1])],
    **{f"aten.{name}.default": [(f(3, 4), k) for k in (0, 1, -2, 9)] + [(f(2, 3, 3), -1), (b(3, 3),), (i(3, 0),)] for name in ("tril", "triu")},
    "aten.view.dtype": [(b(2, 4), torch.int16), (b(3), torch.uint8), (torch.tensor([0, 1, 256], dtype=torch.int16), torch.bool), (f(2, 4), torch.int32), (f(2, 4), torch.int16), (f(2, 4), torch.float64), (i(2, 4, dtype=torch.int8), torch.int32), (f(3).bfloat16(), torch.int16), (i(4, low=0, dtype=torch.uint8), torch.int8)],
    "aten._to_copy.default": [(x, {"dtype": dtype}) for dtype in (torch.int32, torch.bfloat16, torch.bool, torch.float64, torch.int8) for x in (X[2], i(3), b(3), f(3).bfloat16())] + [(f(3), {"dtype": torch.float8_e4m3fn}), (f(3).to(torch.float8_e5m2), {"dtype": torch.float32})],
    "prims.convert_element_type.default": [(X[2], torch.int32), (i(3), torch.bool), (f(3), torch.bfloat16)],
    # indices
    "aten.embedding.default": [(f(5, 3), torch.tensor([[0, 4], [2, 2]])), (f(5, 3), torch.tensor(1)), (f(5, 3), torch.tensor([], dtype=torch.int64))],
    "aten.embedding_renorm.default": [(f(5, 3) * 3, torch.tensor([0, 2, 2]), 1.0, p) for p in (2.0, 1.0, INF, -INF, 0.0)],
    **{name: [(f(6, 3), torch.tensor([0, 2, 2, 5]), torch.tensor([0, 2]), False, mode) for mode in (0, 1, 2)] + [(f(6, 3), torch.tensor([0, 2, 2, 5]), torch.tensor([0, 0, 4]), False, 0, False, f(4), True)] for name in ("aten._embedding_bag.default", "aten._embedding_bag_forward_only.default")},
    "aten.index_select.default": [(f(3, 4), 0, torch.tensor([2, 0])), (f(3, 4), -1, torch.tensor(1)), (f(), 0, torch.tensor([0, 0])), (f(3, 4), 0, torch.tensor([1], dtype=torch.int32))],
    "aten.take.default": [(f(3, 4), torch.tensor([[0, -1], [5, 11]])), (i(4), torch.tensor(2))],
    "aten.gather.default": [(f(3, 4), 1, torch.tensor([[0, 3], [1, 1]])), (f(3, 4), -2, torch.tensor([[2, 0, 1]])), (f(), 0, torch.tensor(0)), (f(3, 4), 0, torch.empty(0, 2, dtype=torch.int64))],
    "aten.scatter.src": [(f(3, 4), 0, torch.tensor([[0, 2, 1]]), f(2, 3)), (i(3, 4), -1, torch.tensor([[3], [0]]), i(3, 4)), (f(), 0, torch.tensor(0), f())],
    "aten.scatter.value": [(f(3, 4), 1, torch.tensor([[0, 2]]), 7.5), (b(3, 2), 0, torch.tensor([[1, 1]]), True)],
    "aten.scatter_add.default": [(f(3, 4), 0, torch.tensor([[0, 0, 1], [2, 0, 1]]), f(2, 3)), (i(3), 0, torch.tensor([1, 1]), i(3)), (f(3).bfloat16(), 0, torch.tensor([1, 1]), f(2).bfloat16())],
    "aten.scatter.reduce": [(f(3, 4), 0, torch.tensor([[0, 0, 1]]), f(2, 3), {"reduce": how}) for how in ("add", "multiply")],
    "aten.scatter.value_reduce": [(f(3, 4), 0, torch.tensor([[0, 0, 1]]), 2.0, {"reduce": how}) for how in ("add", "multiply")],
    "aten.scatter_reduce.two": [(x, 0, torch.tensor([[0, 0, 1], [2, 2, 1]]), y, how, {"include_self": own}) for how in ("sum", "prod", "mean", "amax", "amin") for own in (True, False) for x, y in ((f(3, 4), f(2, 3)), (i(3, 4), i(2, 3)))],
    "aten.index_add.default": [(f(3, 4), 0, torch.tensor([0, 2, 0]), f(3, 4)), (f(3, 4), -1, torch.tensor([1]), f(3, 1), {"alpha": 2}), (f(), 0, torch.tensor(0), f())],
    "aten.index_copy.default": [(f(3, 4), 0, torch.tensor([2, 0]), f(2, 4)), (i(3), 0, torch.tensor(1), torch.tensor(9))],
    "aten.index_fill.int_Scalar": [(f(3, 4), 0, torch.tensor([2, 0]), 9.0), (i(3), 0, torch.tensor(-1), 7), (b(3), 0, torch.tensor([1]), True)],
    "aten.index_fill.int_Tensor": [(f(3, 4), 1, torch.tensor([2, 0]), torch.tensor(9.0))],
    "aten.index_reduce.default": [(f(3, 4), 0, torch.tensor([0, 0, 2]), f(3, 4), how, {"include_self": own}) for how in ("prod", "mean", "amax", "amin") for own in (True, False)],
    **{name: [(f(3, 4), [torch.tensor([0, -1])]), (f(3, 4), [None, torch.tensor([[1], [2]])]), (f(3, 4), [torch.tensor([0, 2]), torch.tensor([1, 3])]), (f(3, 4, 5), [torch.tensor([0, 2]), None, torch.tensor([[1], [3]])]), (f(0, 3), [torch.empty(0, dtype=torch.int64)])] for name in ("aten.index.Tensor", "aten._unsafe_index.Tensor")},
    **{name: [(f(3, 4), [torch.tensor([0, -1])], f(4)), (f(3, 4), [None, torch.tensor([1, 1])], torch.tensor(2.0), True), (f(3, 4, 5), [torch.tensor([0, 2]), None, torch.tensor([1, 3])], f(2, 4)), (i(3), [torch.tensor([1, 1, 2])], i(3), True)] for name in ("aten.index_put.default", "aten._unsafe_index_put.default")},
    "aten.put.default": [(f(3, 4), torch.tensor([[0, -1], [5, 6]]), f(2, 2)), (f(4), torch.tensor([1, 1]), f(2), True)],
    "aten.masked_fill.Scalar": [(f(3, 4), b(3, 4), 1.5), (f(3, 4), b(4), -INF), (I, b(3, 1), 7), (f(), b(), 2)],
    "aten.masked_fill.Tensor": [(f(3, 4), b(3, 4), torch.tensor(1.5)), (I, b(3, 1), torch.tensor(7))],
    "aten.masked_scatter.default": [(f(3, 4), b(3, 4), f(12)), (i(4), b(4), i(6))],
    "aten.nonzero_static.default": [(b(3, 4), {"size": 5}), (I, {"size": 20, "fill_value": 7}), (f(), {"size": 2})],
    "aten.slice_scatter.default": [(f(5, 4), f(2, 4), 0, 1, 3), (f(5, 4), f(5, 2), -1, 0, 4, 2), (f(5, 4), f(0, 4), 0, 3, 1)],
    "aten.select_scatter.default": [(f(5, 4), f(4), 0, 2), (f(5, 4), f(5), -1, -1)],
    "aten.diagonal_scatter.default": [(f(3, 4), f(3)), (f(3, 4), f(2), -1), (f(2, 3, 4), f(2, 3), 1, 1, 2)],
    "aten.where.self": [(b(3, 4), f(3, 4), f(4)), (b(4), f(3, 4), I), (b(3, 4), torch.tensor(1.0), I), (b(1), f(0), f(0))],
    # products
    **{name: [(f(2, 3).bfloat16(), f(3, 2).bfloat16(), torch.float32)] for name in ("aten.mm.dtype",)}, "aten.bmm.dtype": [(f(2, 2, 3).bfloat16(), f(2, 3, 2).bfloat16(), torch.float32)],
    "aten.addmm.default": [(f(2), f(3, 4), f(4, 2)), (f(3, 2), f(3, 4), f(4, 2), {"beta": 0.5, "alpha": 2}), (torch.full((2,), NAN), f(3, 4), f(4, 2), {"beta": 0}), *UNUSED_PRODUCTS, (i(2), i(3, 4), i(4, 2)), (f(2).bfloat16(), f(3, 4).bfloat16(), f(4, 2).bfloat16())],
    "aten.baddbmm.default": [(f(1, 9, 9), torch.full((1, 9, 9), NAN), f(1, 9, 9), {"alpha": 0}), (f(1, 3, 3), torch.full((1, 3, 3), NAN), f(1, 3, 3), {"alpha": 0}), (f(2, 3, 2), f(2, 3, 4), f(2, 4, 2)), (f(2), f(2, 3, 4), f(2, 4, 2), {"beta": 0.5, "alpha": 2})],
    "aten.addbmm.default": [(f(3, 2), torch.full((2, 3, 4), NAN), f(2, 4, 2), {"alpha": 0}), (f(3, 2), f(2, 3, 4), f(2, 4, 2)), (f(2), f(2, 3, 4), f(2, 4, 2), {"beta": 0.5, "alpha": 2})],
    "aten.addmv.default": [(f(3), torch.full((3, 4), NAN), f(4), {"alpha": 0}), (f(3), torch.full((3, 4), NAN), f(4), {"alpha": 0, "beta": 0}), (f(3), f(3, 4), f(4)), (f(1), f(3, 4), f(4), {"beta": 0, "alpha": 2})], "aten.addr.default": [(f(3, 4), f(3), f(4)), (f(4), f(3), f(4), {"beta": 2, "alpha": 0.5}), (i(3, 4), i(3), i(4))],
    "aten._grouped_mm.default": [(f(8, 16).bfloat16(), f(3, 16, 32).bfloat16(), torch.tensor([2, 2, 8], dtype=torch.int32)), (f(2, 4, 16).bfloat16(), f(16, 32).bfloat16(), torch.tensor([16, 32], dtype=torch.int32)), (f(2, 4, 16).bfloat16(), f(2, 16, 32).bfloat16())],
    "aten._scaled_mm.default": [(EIGHT, EIGHT.t(), torch.tensor(0.5), torch.tensor(2.0), {"out_dtype": torch.float32}), (EIGHT, EIGHT.t(), torch.tensor(0.5), torch.tensor(2.0), f(16).bfloat16(), None, torch.bfloat16), (EIGHT, EIGHT.t(), f(16, 1).abs(), f(1, 16).abs(), {"out_dtype": torch.bfloat16})],
    "aten._scaled_mm_v2.default": [(EIGHT, EIGHT.t(), [torch.tensor(0.5)], [0], [0], [torch.tensor(2.0)], [0], [0], None, torch.float32), (EIGHT, EIGHT.t(), [f(16, 1).abs()], [1], [0], [f(1, 16).abs()], [1], [0], f(16).bfloat16(), torch.bfloat16)],
    "aten.convolution.default": [(IMAGE, f(4, 3, 3, 2), f(4), [1, 2], [1, 0], [1, 1], False, [0, 0], 1), (f(1, 4, 9), f(6, 2, 3), None, [2], [1], [2], False, [0], 2), (f(2, 4, 5, 5), f(4, 3, 3, 3), f(6), [2, 2], [1, 1], [1, 1], True, [1, 0], 2), (VOLUME, f(2, 1, 2, 2, 2), None, [1], [0], [1], False, [0], 2), (IMAGE.bfloat16(), f(4, 3, 3, 3).bfloat16(), f(4).bfloat16(), [1, 1], [1, 1], [1, 1], False, [0, 0], 1), (f(0, 3, 6, 6), f(4, 3, 3, 3), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)],
    # norms
    **{name: [(f(3, 4), -1, False), (X, 0, False), (f(3, 4).bfloat16(), 1, False), (f(), 0, False), (torch.full((2, 2), -INF), 1, False), (f(2, 0), 1, False)] for name in ("aten._softmax.default", "aten._log_softmax.default")},
    "aten.native_layer_norm.default": [(f(2, 3, 4), [4], f(4), f(4), 1e-5), (f(2, 3, 4), [3, 4], None, None, 1e-5), (f(2, 4).bfloat16(), [4], f(4).bfloat16(), f(4).bfloat16(), 1e-5)],
    "aten._native_batch_norm_legit_no_training.default": [(IMAGE, f(3), f(3), f(3), f(3).abs(), 0.1, 1e-5), (f(4, 3), None, None, f(3), f(3).abs(), 0.1, 1e-5)],
    # pools and resizing
    "aten.max_pool2d_with_indices.default": [(IMAGE, [2, 3]), (IMAGE, [3], [2], [1], [1], True), (f(3, 6, 7), [2], [1], [0], [2]), (IMAGE.bfloat16(), [2])],
    "aten.max_pool3d_with_indices.default": [(VOLUME, [2]), (VOLUME, [2], [1], [1], [1], True)],
    "aten.avg_pool1d.default": [(WAVE, [3]), (WAVE, [3], [2], [1], True, False)],
    "aten.avg_pool2d.default": [(IMAGE, [2, 3]), (IMAGE, [3], [2], [1], True, False), (IMAGE, [3], [2], [1], True, True), (IMAGE, [2], [2], [0], False, True, 3), (IMAGE.bfloat16(), [2])],
    "aten.avg_pool3d.default": [(VOLUME, [2]), (VOLUME, [2], [1], [1], True, False)],
    "aten.adaptive_avg_pool1d.default": [(WAVE, [4]), (f(3, 9), [3])], "aten._adaptive_avg_pool2d.default": [(IMAGE, [3, 5]), (IMAGE, [1, 1])], "aten._adaptive_avg_pool3d.default": [(VOLUME, [2, 3, 4])],
    "aten.adaptive_max_pool2d.default": [(IMAGE, [3, 5]), (IMAGE, [6, 7])], "aten.adaptive_max_pool3d.default": [(VOLUME, [2, 3, 4])],
    **{f"aten.{name}1d.default": [(WAVE, [13]), (WAVE, [5], 0.6)] for name in ("upsample_nearest", "_upsample_nearest_exact")},
    **{f"aten.{name}2d.default": [(IMAGE, [9, 4]), (IMAGE, [12, 14], 2.0, 2.0), (IMAGE, [6, 7], 1.15, 1.1), (IMAGE, [12, 14], 2.1, 2.05), (IMAGE, [6, 9], 1.1, 1.3)] for name in ("upsample_nearest", "_upsample_nearest_exact")},
    **{f"aten.{name}3d.default": [(VOLUME, [5, 3, 8])] for name in ("upsample_nearest", "_upsample_nearest_exact")},
    **{f"aten.{name}{rank}d.vec": [(x, None, [1.5] * rank), (x, [5] * rank, None)] for name in ("upsample_nearest", "_upsample_nearest_exact") for rank, x in ((1, WAVE), (2, IMAGE), (3, VOLUME))},
    "aten.upsample_linear1d.default": [(WAVE, [13], corners) for corners in (False, True)], "aten.upsample_linear1d.vec": [(WAVE, None, False, [1.5]), (WAVE, None, False, [1.05])],
    **{f"aten.upsample_{name}2d.default": [(IMAGE, [9, 4], corners) for corners in (False, True)] for name in ("bilinear", "bicubic")},
    **{f"aten.upsample_{name}2d.vec": [(IMAGE, None, False, [1.5, 0.7]), (IMAGE, [4, 4], True, None), (IMAGE, None, False, [1.1, 1.1]), (INFINITE, [6, 7], False, None), (INFINITE, [6, 9], True, None), (BYTES, [12, 5], False, None), (BYTES, None, False, [1.7, 1.7]), (BYTES, [9, 20], True, None)] for name in ("bilinear", "bicubic")},
    "aten.upsample_trilinear3d.default": [(VOLUME, [5, 3, 8], corners) for corners in (False, True)], "aten.upsample_trilinear3d.vec": [(VOLUME, None, False, [1.5, 1.5, 0.5])],
    **{f"aten._upsample_{name}2d_aa.default": [(IMAGE, [9, 4], False), (IMAGE, [3, 3], True), (IMAGE, [6, 7], False, 1.1, 1.1), (INFINITE, [9, 10], False), (BYTES, [12, 5], False)] for name in ("bilinear", "bicubic", "lanczos")},
    # creation
    "aten.full.default": [([2, 3], 1.5, SIZES), ([2], True), ([], 3), ([0], 1)], "aten.full_like.default": [(f(2), 3), (i(2), 2.5), (b(2), 1, {"dtype": torch.int8})],
    "aten.new_full.default": [(f(2), [3], 2)], "aten.zeros.default": [([2, 3], SIZES), ([], {"dtype": torch.bool})], "aten.ones.default": [([2, 3], SIZES), ([2], {"dtype": torch.int8})],
    **{f"aten.{name}.default": [(f(2, 3),), (I, {"dtype": torch.float32})] for name in ("zeros_like", "ones_like", "empty_like")},
    **{f"aten.{name}.default": [(f(2), [3, 1]), (i(2), [0], {"dtype": torch.bool})] for name in ("new_zeros", "new_ones", "new_empty")},
    "aten.empty.memory_format": [([2, 3], SIZES)], "aten.empty_strided.default": [([2, 3], [1, 2], SIZES)], "aten.empty_permuted.default": [([2, 3], [1, 0], SIZES)], "aten.new_empty_strided.default": [(f(2), [2, 3], [1, 2])],
    "aten.scalar_tensor.default": [(2.5,), (3, {"dtype": torch.int32}), (True, {"dtype": torch.bool})], "aten.fill.Scalar": [(f(2), 3), (i(2), 2.5)], "aten.fill.Tensor": [(f(2), torch.tensor(3))],
    "aten.arange.default": [(5,), (2.5,), (0,)], "aten.arange.start": [(2, 7), (-1.5, 2)], "aten.arange.start_step": [(2, 9, 3), (5, 0, -2), (0.0, 1.0, 0.1), (1, 2, 0.25, {"dtype": torch.bfloat16})],
    "prims.iota.default": [(5, {"start": 2, "step": 3, "dtype": torch.int64, "device": torch.device("cpu"), "requires_grad": False})],
    "aten.linspace.default": [(0, 1, 7), (-3.5, 2, 1), (0, 9, 4, {"dtype": torch.int64}), (0, 1, 5, {"dtype": torch.bfloat16})], "aten.logspace.default": [(0, 2, 5), (0, 3, 4, 2.0)],
    "aten.eye.default": [(3,), (0,)], "aten.eye.m": [(2, 4,), (3, 2, {"dtype": torch.bool})], **{f"aten.{name}_indices.default": [(3, 4), (4, 3, 1), (3, 3, -1)] for name in ("tril", "triu")},
    # linear algebra, Fourier
    "aten._fft_c2c.default": [(torch.complex(f(3, 4), f(3, 4)), [1], 0, True), (torch.complex(f(3, 4), f(3, 4)), [0, 1], 2, False)], "aten._fft_r2c.default": [(f(3, 5), [1], 0, True), (f(3, 4), [0], 1, False)], "aten._fft_c2r.default": [(torch.complex(f(3, 3), f(3, 3)), [1], 2, 5)],
    "aten._linalg_det.default": [(SQUARES,)], "aten._linalg_slogdet.default": [(SQUARES,), (torch.tensor([[1.0, NAN], [0, 1]]),)], "aten._linalg_solve_ex.default": [(SQUARES, f(2, 3, 2)), (SQUARES, f(2, 3, 3), {"left": False})],
    "aten._linalg_eigh.default": [(positive(3),), (positive(3) * 1e25,)], "aten._linalg_svd.default": [(f(2, 4, 3),), (f(4, 3) * 1e25,)], "aten.linalg_qr.default": [(f(2, 4, 3),)], "aten.geqrf.default": [(MATRIX,), (MATRIX * 1e25,)],
    "aten.cholesky.default": [(positive(3),), (positive(2), True)], "aten.linalg_cholesky_ex.default": [(positive(3),), (positive(3), {"upper": True})], "aten.cholesky_inverse.default": [(LOWER,)], "aten.cholesky_solve.default": [(f(2, 3, 2), LOWER)],
    "aten.linalg_householder_product.default": [torch.geqrf(MATRIX)], "aten.ormqr.default": [(*torch.geqrf(MATRIX), f(4, 2)), (*torch.geqrf(MATRIX), f(2, 4), False, True)],
    "aten.linalg_inv_ex.default": [(SQUARES,)], "aten.linalg_lstsq.default": [(f(4, 3), f(4, 2))], "aten.linalg_lu.default": [(SQUARES,)], "aten.linalg_lu_factor_ex.default": [(SQUARES,), (f(2, 4, 3),)],
    "aten.linalg_lu_solve.default": [(LU, PIVOTS, f(2, 3, 2)), (LU, PIVOTS, f(2, 3, 3), {"left": False, "adjoint": True})], "aten.lu_unpack.default": [(LU, PIVOTS)],
    "aten.linalg_solve_triangular.default": [(LOWER.contiguous(), f(2, 3, 2), {"upper": False}), (LOWER.mT.contiguous(), f(2, 4, 3), {"upper": True, "left": False})],
    "aten.triangular_solve.default": [(f(2, 3, 2), LOWER.mT.contiguous()), (f(2, 3, 2), LOWER.contiguous(), False, True)],
}  # fmt: skip

SEEN: dict[str, Callable[..., Any]] = {
    "aten._linalg_svd.default": _svd, "aten._linalg_eigh.default": _eigh, "aten.linalg_qr.default": _r, "aten.geqrf.default": _reconstructed,
    "aten._linalg_det.default": lambda result, *_: result, "aten._linalg_slogdet.default": lambda sign, log, *_: (sign, log),
    "aten._linalg_solve_ex.default": lambda result, *_: result, "aten.linalg_lstsq.default": lambda solution, *_: solution,
    **dict.fromkeys(("aten.empty_like.default", "aten.empty.memory_format", "aten.empty_strided.default", "aten.empty_permuted.default", "aten.new_empty.default", "aten.new_empty_strided.default"), _lengths),
    **{f"aten.{name}.default": lambda result, *_: result for name in ("_embedding_bag", "_embedding_bag_forward_only")},
    "aten.sort.default": lambda values, indices: values, "aten._native_batch_norm_legit_no_training.default": lambda result, *_: result,
}  # fmt: skip
LOOSE = {"rtol": 1e-4, "atol": 1e-5}
TOLERANCES: dict[str, dict[str, float]] = {
    **dict.fromkeys(("aten.lgamma.default", "aten.digamma.default", "aten.erfinv.default", "aten.special_ndtri.default"), LOOSE),
    **{name: LOOSE for name in rules() if "linalg" in name or "bessel" in name or "lu_" in name or "cholesky" in name},
}  # fmt: skip

REFERENCES: dict[str, Callable[..., torch.Tensor]] = {
    name: lambda one, other, dtype: one.to(dtype) @ other.to(dtype) for name in ("aten.mm.dtype", "aten.bmm.dtype")
} | {
    f"aten.special_shifted_{name}.{overload}": lambda x, n, op=getattr(torch.special, name): op(
        2 * torch.as_tensor(x) - 1, n
    )
    for name in ("chebyshev_polynomial_t", "chebyshev_polynomial_u", "chebyshev_polynomial_v", "chebyshev_polynomial_w")
    for overload in ("default", "x_scalar", "n_scalar")
}
"""What stands for eager torch where its CPU kernels lack the op."""

ELSEWHERE = {
    "transformers.grouped_mm_fallback.default": "tests/lowering/test_models.py",
}
"""Rules of ops that are there only where another package is imported, and the file that tests them."""


def calls(overload: str) -> Iterator[Call]:
    """The calls of one overload that eager torch takes."""
    for given in _given(overload):
        args, kwargs = (given[:-1], given[-1]) if given and isinstance(given[-1], dict) else (given, {})
        call = Call(
            overload,
            tuple(args),
            dict(kwargs),
            SEEN.get(overload, same),
            TOLERANCES.get(overload, {}),
            REFERENCES.get(overload),
        )
        if call.works():
            yield call


def _given(overload: str) -> list[tuple]:
    if overload in CASES:
        return CASES[overload]
    if overload in PAIRS:
        return PAIRS[overload]
    if overload in DOMAINS:
        return [(x,) for x in DOMAINS[overload]]
    arguments = Call(overload, ()).op._schema.arguments
    kinds = [str(argument.type) for argument in arguments if not argument.has_default_value()]
    if kinds == ["Tensor"]:
        return [(x,) for x in UNARY]
    if kinds == ["Tensor", "Tensor"]:
        return list(BINARY)
    return list(SCALARS) if kinds == ["Tensor", "number"] else []
