"""Cases of the rules of lowering/ops/reduce.py: argument tuples by overload; a dict at the end of one holds keyword arguments."""

from __future__ import annotations

import torch

from cases.operands import COMPLEX, DUPLICATES, INF, SPECIAL, UNARY, I, X, b, f, i

CASES: dict[str, list[tuple]] = {
    "aten.max.default": [*[(x,) for x in UNARY[:5]], (i(3),)],
    "aten.min.default": [*[(x,) for x in UNARY[:5]], (i(3),)],
    "aten.sum.default": [(x,) for x in (X[0], X.bfloat16()[0], I, b(4), f(), torch.empty(0, 3), i(3, dtype=torch.int8))]
    + [(I, {"dtype": torch.float32}), (f(3), {"dtype": torch.int32})],
    "aten.mean.default": [(f(3, 4),), (f(3, 4).bfloat16(),), (f(),), (f(0),), (I, {"dtype": torch.float32})],
    "aten.prod.default": [
        (f(3, 2),),
        (i(4, low=1),),
        (i(4, low=1, dtype=torch.int8),),
        (f(0),),
        (b(3),),
        (f(3).bfloat16(),),
    ],
    **{
        name: [
            (f(2, 3, 4), [1]),
            (f(2, 3, 4), [-1, 0], True),
            (f(2, 3, 4), None),
            (f(2, 3, 4), []),
            (f(2, 0, 4), [1]),
            (f(2, 3).bfloat16(), [0]),
            (f(), [0]),
            (I, [1], False, {"dtype": torch.float32}),
        ]
        for name in ("aten.sum.dim_IntList", "aten.mean.dim")
    },
    "aten.prod.dim_int": [(f(2, 3), 0), (f(2, 3), -1, True), (i(2, 3), 1), (f(2, 0), 1), (b(2, 3), 1), (f(), 0)],
    **{
        name: [(x, 0) for x in (b(2, 3), I, X, f(0, 3), torch.tensor(True), i(2, 2, low=0, dtype=torch.uint8))]
        + [(b(2, 3), -1, True)]
        for name in ("aten.any.dim", "aten.all.dim")
    },
    **{
        name: [(b(2, 3, 2), dims, keep) for dims, keep in (([0, 2], False), (None, True), ([], False), ([-1], True))]
        for name in ("aten.any.dims", "aten.all.dims")
    },
    **{
        name: [
            (X, [1]),
            (X, [], True),
            (I, [0, 1]),
            (b(3, 4), [0]),
            (X.bfloat16(), [-1], True),
            (f(), []),
            (f(0, 3), [1]),
            (i(3, dtype=torch.int8), [0]),
        ]
        for name in ("aten.amax.default", "aten.amin.default")
    },
    "aten.aminmax.default": [(X,), (X, {"dim": 1}), (I, {"dim": 0, "keepdim": True}), (b(3, 4), {"dim": 1})],
    **{
        name: [(X, 1), (X, 0, True), (I, -1), (DUPLICATES, 1), (b(3, 4), 0), (f(), 0), (X.bfloat16(), 1), (f(0, 3), 1)]
        for name in ("aten.max.dim", "aten.min.dim")
    },
    **{
        name: [
            (X, 1),
            (X,),
            (X, 0, True),
            (DUPLICATES, -1),
            (DUPLICATES,),
            (f(),),
            (X.bfloat16(), 1),
            (X.t(), None, True),
        ]
        for name in ("aten.argmax.default", "aten.argmin.default")
    },
    **{
        name: [
            (f(3, 4), [1]),
            (f(3, 4), None, {"correction": 0}),
            (f(3, 4), [0, 1], {"correction": 1, "keepdim": True}),
            (f(3, 4).bfloat16(), [1]),
            (f(3, 1), [1]),
            (f(3), [0], {"correction": 5}),
            (f(3, 4).double(), [0], {"correction": 0.5}),
            (SPECIAL[:2, :5] + 1j, [1]),
        ]
        for name in ("aten.var.correction", "aten.std.correction", "aten.var_mean.correction")
    },
    "aten.logsumexp.default": [
        (COMPLEX, [0]),
        (f(3, 4), [1]),
        (X, [0]),
        (f(3, 4), [0, 1], True),
        (f(2).bfloat16(), [0]),
        (torch.full((2, 2), -INF), [1]),
        (I, [1]),
    ],
}
