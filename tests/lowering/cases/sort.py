"""Cases of the rules of lowering/ops/sort.py: argument tuples by overload; a dict at the end of one holds keyword arguments."""

from __future__ import annotations

import torch

from cases.operands import DUPLICATES, INF, NAN, SPECIAL, I, X, b, f, i

CASES: dict[str, list[tuple]] = {
    "aten.sort.default": [(X, 1), (X, 0, True), (f(), -1), (f(0, 3), 0), (b(5), 0), (i(4, dtype=torch.int8),)],
    "aten.sort.stable": [
        (DUPLICATES, {"stable": True, "descending": down, "dim": dim}) for down in (False, True) for dim in (0, -1)
    ]
    + [(X, {"stable": True}), (X.bfloat16(), {"stable": True, "descending": True})],
    "aten.topk.default": [
        (f(3, 5), 2),
        (f(3, 5), 3, 0, False),
        (torch.tensor(2.0), 1),
        (X[2:], 6),
        (torch.tensor([[1.0, NAN, -INF, 3.0, INF, -0.0], [-NAN, -1.0, -2.0, -INF, -3.0, 0.0]]), 4),
        (f(4, 6).bfloat16(), 3, 0),
        (i(6, high=90), 2),
        (f(2, 4), 0),
    ],
    "aten.kthvalue.default": [(f(3, 5), 2), (f(3, 5), 1, 0, True), (f(), 1)],
    "aten.median.dim": [(X, 1), (f(3, 5), 0, True), (f(), 0), (i(5, high=90), 0)],
    "aten.nanmedian.dim": [(X, 1), (f(3, 4), -1)],
    "aten.mode.default": [(DUPLICATES, 1), (DUPLICATES, 0, True), (f(), -1)],
    "aten.searchsorted.Tensor": [
        (torch.tensor([1.0, 3, 5, 7]), f(2, 3) * 4),
        (torch.tensor([1.0, 3, 3, 7]), torch.tensor([3.0, NAN, INF]), {"right": True}),
        (torch.arange(8.0).reshape(2, 4), f(2, 3) * 4, {"side": "right", "out_int32": True}),
        (torch.tensor([5, 1, 3]), torch.tensor([2, 5]), {"sorter": torch.tensor([1, 2, 0])}),
        (torch.tensor([1.0, 2, NAN, NAN]), SPECIAL[1]),
        (torch.tensor([3, 1, 2, 5, 4, 0]), torch.arange(7), {"right": True}),
        (torch.tensor([]), torch.zeros(2)),
        (torch.arange(5).to(torch.uint8), torch.tensor([7, -1])),
    ],
    "aten.searchsorted.Scalar": [
        (torch.tensor([1.0, 3, 5]), 3),
        (torch.tensor([1, 3, 5]), 3, {"right": True}),
        (torch.tensor([1, 2, 3]), 2.5),
    ],
    "aten.bucketize.Tensor": [
        (f(2, 3) * 4, torch.tensor([-2.0, 0, 2])),
        (I, torch.tensor([-2, 0, 2]), {"right": True, "out_int32": True}),
    ],
    "aten.bucketize.Scalar": [
        (2.5, torch.tensor([1, 2, 3])),
        (1.5, torch.tensor([-2.0, 0, 2])),
        (0, torch.tensor([-2, 0, 2]), {"right": True}),
    ],
}
