"""Cases of the rules of lowering/ops/special.py: argument tuples by overload; a dict at the end of one holds keyword arguments."""

from __future__ import annotations

import torch

from cases.operands import INF, NAN, SPECIAL, I, J, f, i
from fxhlo.lowering.registry import rules

SPECIAL_A = torch.tensor([INF, NAN, NAN, NAN, 2.0, 0.0, 0.0, -1.0, INF, 500.0, 1e6])
SPECIAL_X = torch.tensor([NAN, 0.0, INF, 1.0, INF, 2.0, 0.0, 1.0, INF, 505.0, 999.9e3])
"""Of the incomplete gamma functions: orders and arguments."""
CASES: dict[str, list[tuple]] = {
    **{
        name: [
            (x,)
            for x in [
                torch.tensor([0.1, 0.5, 1.0, 2.5, 7.0, 20.0, INF, NAN]),
                torch.tensor([0.5, 2.0]).to(torch.bfloat16),
                i(4, low=1),
            ]
        ]
        for name in (
            "aten.special_bessel_y0.default",
            "aten.special_bessel_y1.default",
            "aten.special_modified_bessel_k0.default",
            "aten.special_modified_bessel_k1.default",
            "aten.special_scaled_modified_bessel_k0.default",
            "aten.special_scaled_modified_bessel_k1.default",
            "aten.special_airy_ai.default",
            "aten.special_bessel_j0.default",
            "aten.special_bessel_j1.default",
            "aten.special_spherical_bessel_j0.default",
            "aten.special_modified_bessel_i0.default",
            "aten.special_modified_bessel_i1.default",
            "aten.i0.default",
            "aten.special_i0e.default",
            "aten.special_i1.default",
            "aten.special_i1e.default",
        )
    },
    "aten.gcd.default": [(I, J), (I.to(torch.int8), J.to(torch.int8))],
    "aten.lcm.default": [(I, J)],
    "aten.igamma.default": [(SPECIAL_A, SPECIAL_X), (f(5).abs() + 0.1, f(5).abs())],
    "aten.igammac.default": [(SPECIAL_A, SPECIAL_X), (f(5).abs() + 0.1, f(5).abs())],
    "aten.special_zeta.default": [
        (torch.tensor([INF, INF, INF, INF, NAN, 2.0]), torch.tensor([1.0, 0.5, -0.5, 2.5, 1.0, -1e3 - 0.5])),
        (f(5).abs() + 1.5, f(5).abs() + 0.5),
    ],
    "aten.special_zeta.self_scalar": [(2.5, f(4).abs() + 0.5)],
    "aten.special_zeta.other_scalar": [(f(4).abs() + 1.5, 0.5)],
    "aten.polygamma.default": [(n, torch.tensor([0.5, 1.0, 2.5, 7.0])) for n in (0, 1, 2, 4)] + [(1, i(3, low=1))],
    "aten.frexp.Tensor": [(torch.tensor([0.0, -0.0, 1.0, -3.5, 0.001, 1024.0, 0.75]),), (f(4).bfloat16(),)],
    **{
        name: [(SPECIAL, SPECIAL.flip(1)), (SPECIAL.bfloat16(), SPECIAL[0].bfloat16()), (I, torch.tensor([[2], [3]]))]
        for name in ("aten.xlogy.Tensor", "aten.special_xlog1py.default")
    },
    **{
        name: [(SPECIAL, 2.5), (torch.arange(4), 2.5), (SPECIAL, NAN), (SPECIAL.bfloat16(), 0.1)]
        for name in ("aten.xlogy.Scalar_Other", "aten.special_xlog1py.other_scalar")
    },
    **{
        name: [(2.5, SPECIAL), (2.5, torch.arange(4)), (0, SPECIAL), (0.1, SPECIAL.bfloat16())]
        for name in ("aten.xlogy.Scalar_Self", "aten.special_xlog1py.self_scalar")
    },
    "aten.ldexp.Tensor": [
        (SPECIAL, torch.tensor([[0], [3], [-2]])),
        (torch.tensor([1e-30, 3e38, 0.0, INF]), torch.tensor([130, -130, 200, -(2**63)])),
        (SPECIAL.bfloat16(), torch.tensor(3)),
        (SPECIAL, torch.tensor([0.5] * 6)),
        (torch.arange(3), torch.tensor([2, -1, 4])),
    ],
}

for _name in rules():
    if _name.startswith("aten.special_") and "polynomial" in _name:
        _x, _n = torch.tensor([-1.5, -1.0, 0.3, 1.0, 2.0]), torch.tensor([0.0, 1.0, 2.0, 5.0, 3.0])
        CASES[_name] = {
            "default": [(_x, _n)],
            "x_scalar": [(0.3, torch.cat([_n, torch.tensor([INF, -INF, NAN])]))],
            "n_scalar": [(_x, 4)],
        }[_name.split(".")[2]]
