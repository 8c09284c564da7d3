"""Cases of the rules of lowering/ops/elementwise.py: argument tuples by overload; a dict at the end of one holds keyword arguments."""

from __future__ import annotations

import torch

from cases.operands import BINARY, COMPLEX, I, J, X, Y, b, f, i

CASES: dict[str, list[tuple]] = {
    "aten.digamma.default": [(X[2:],), (f(4),)],
    "aten.lgamma.default": [(X[2:],), (f(4),)],
    "aten.floor_divide.default": [
        (X, Y),
        (I, J),
        (I.to(torch.int8), J.to(torch.int8)),
        (X.to(torch.bfloat16), Y.to(torch.bfloat16)),
    ],
    "aten.fmod.Tensor": [(X, Y), (I, J)],
    "aten.remainder.Tensor": [(X, Y), (I, J), (I, J.to(torch.int32)), (X.to(torch.bfloat16), Y.to(torch.bfloat16))],
    "aten.nextafter.default": [(f(4), f(4)), (X, Y)],
    "aten.remainder.Scalar_Tensor": [(7, J), (7.5, Y)],
    "aten.floor_divide.Scalar": [(X, 2), (I, -3), (I, 2.5)],
    "aten.fmod.Scalar": [(X, 2), (I, -3), (I, 2.5)],
    **{
        name: [
            *[(*pair, {}) for pair in BINARY if pair[0].dtype != torch.bool or "add" in name],
            (X, Y, {"alpha": 0.5}),
            (I, J, {"alpha": -2}),
        ]
        for name in ("aten.add.Tensor", "aten.sub.Tensor", "aten.rsub.Tensor")
    },
    **{
        name: [(X, 2), (X.to(torch.bfloat16), 0.1), (I, 3, 2), (I, 2.5), (torch.tensor(2), 3)]
        for name in ("aten.add.Scalar", "aten.sub.Scalar", "aten.rsub.Scalar")
    },
    "aten.div.Tensor_mode": [
        (*pair, {"rounding_mode": mode})
        for mode in (None, "floor", "trunc")
        for pair in ((X, Y), (I, J), (I, J.to(torch.int8)), (X.bfloat16(), Y.bfloat16()))
    ],
    "aten.div.Scalar_mode": [
        (x, other, {"rounding_mode": mode})
        for mode in (None, "floor", "trunc")
        for x, other in ((X, 2), (I, -3), (I, 2.5), (X.bfloat16(), 0.3))
    ],
    "aten.pow.Scalar": [
        (2, X),
        (-2.5, f(4)),
        (2, i(4, low=0)),
        (0, i(3, low=0)),
        (True, b(3)),
        (2, torch.arange(60, 70)),
        (-1, I),
    ],
    "aten.pow.Tensor_Scalar": [(X, e) for e in (0, 1, 2, 3, 0.5, -0.5, -1, -2, 2.7, 10, -3)]
    + [
        (I, 2),
        (I, 5),
        (I, 0),
        (I, 64),
        (I.to(torch.int32), 1001),
        (I, 0.5),
        (I.to(torch.int8), 3),
        (X.bfloat16(), 2),
        (X.bfloat16(), -1),
        (f(2).to(torch.complex64), 2),
        (COMPLEX[0], 2 - 1j),
    ],
    "aten.pow.Tensor_Tensor": [
        (X, Y),
        (I, J.abs()),
        (I, J.abs() + 0.5),
        (X.bfloat16(), Y.bfloat16()),
        (b(4), b(4)),
        (X, torch.tensor(2)),
        (i(3, 4), torch.tensor([0, -3, 127, 2**62 + 5])),
        (i(3, 1, dtype=torch.int8), torch.tensor([-2, 64, 127], dtype=torch.int8)),
        (i(3, 1, low=0, dtype=torch.uint8), torch.tensor([3, 65, 255], dtype=torch.uint8)),
    ],
    "aten.round.decimals": [(X, {"decimals": d}) for d in (0, 1, -1, 3)]
    + [(I, {"decimals": 2}), (X.bfloat16(), {"decimals": 1})],
    "aten.clamp.default": [
        (X, -1.0, 1.0),
        (X, 0.5),
        (X, None, 0.5),
        (X, 1.0, -1.0),
        (I, -2, 3),
        (I, 0.5, 3),
        (X.bfloat16(), -0.3, 0.3),
        (i(4, dtype=torch.int8), -100, 100),
    ],
    "aten.clamp.Tensor": [(X, Y, Y + 1), (X, Y[0]), (X, None, torch.tensor(0.5)), (I, J, J + 2), (I, J + 0.5)],
    "aten.clamp_min.default": [(X, 0.5), (I, 2)],
    "aten.clamp_min.Tensor": [(X, Y), (I, J)],
    "aten.clamp_max.default": [(X, 0.5), (I, 2)],
    "aten.clamp_max.Tensor": [(X, Y), (I, J)],
}
