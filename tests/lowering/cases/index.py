"""Cases of the rules of lowering/ops/index.py: argument tuples by overload; a dict at the end of one holds keyword arguments."""

from __future__ import annotations

import torch

from cases.operands import INF, I, b, f, i

CASES: dict[str, list[tuple]] = {
    "aten.index_select.default": [
        (f(3, 4), 0, torch.tensor([2, 0])),
        (f(3, 4), -1, torch.tensor(1)),
        (f(), 0, torch.tensor([0, 0])),
        (f(3, 4), 0, torch.tensor([1], dtype=torch.int32)),
    ],
    "aten.take.default": [(f(3, 4), torch.tensor([[0, -1], [5, 11]])), (i(4), torch.tensor(2))],
    "aten.gather.default": [
        (f(3, 4), 1, torch.tensor([[0, 3], [1, 1]])),
        (f(3, 4), -2, torch.tensor([[2, 0, 1]])),
        (f(), 0, torch.tensor(0)),
        (f(3, 4), 0, torch.empty(0, 2, dtype=torch.int64)),
    ],
    "aten.scatter.src": [
        (f(3, 4), 0, torch.tensor([[0, 2, 1]]), f(2, 3)),
        (i(3, 4), -1, torch.tensor([[3], [0]]), i(3, 4)),
        (f(), 0, torch.tensor(0), f()),
    ],
    "aten.scatter.value": [(f(3, 4), 1, torch.tensor([[0, 2]]), 7.5), (b(3, 2), 0, torch.tensor([[1, 1]]), True)],
    "aten.scatter_add.default": [
        (f(3, 4), 0, torch.tensor([[0, 0, 1], [2, 0, 1]]), f(2, 3)),
        (i(3), 0, torch.tensor([1, 1]), i(3)),
        (f(3).bfloat16(), 0, torch.tensor([1, 1]), f(2).bfloat16()),
    ],
    "aten.scatter.reduce": [
        (f(3, 4), 0, torch.tensor([[0, 0, 1]]), f(2, 3), {"reduce": how}) for how in ("add", "multiply")
    ],
    "aten.scatter.value_reduce": [
        (f(3, 4), 0, torch.tensor([[0, 0, 1]]), 2.0, {"reduce": how}) for how in ("add", "multiply")
    ],
    "aten.scatter_reduce.two": [
        (x, 0, torch.tensor([[0, 0, 1], [2, 2, 1]]), y, how, {"include_self": own})
        for how in ("sum", "prod", "mean", "amax", "amin")
        for own in (True, False)
        for x, y in ((f(3, 4), f(2, 3)), (i(3, 4), i(2, 3)))
    ],
    "aten.index_add.default": [
        (f(3, 4), 0, torch.tensor([0, 2, 0]), f(3, 4)),
        (f(3, 4), -1, torch.tensor([1]), f(3, 1), {"alpha": 2}),
        (f(), 0, torch.tensor(0), f()),
    ],
    "aten.index_copy.default": [
        (f(3, 4), 0, torch.tensor([2, 0]), f(2, 4)),
        (i(3), 0, torch.tensor(1), torch.tensor(9)),
    ],
    "aten.index_fill.int_Scalar": [
        (f(3, 4), 0, torch.tensor([2, 0]), 9.0),
        (i(3), 0, torch.tensor(-1), 7),
        (b(3), 0, torch.tensor([1]), True),
    ],
    "aten.index_fill.int_Tensor": [(f(3, 4), 1, torch.tensor([2, 0]), torch.tensor(9.0))],
    "aten.index_reduce.default": [
        (f(3, 4), 0, torch.tensor([0, 0, 2]), f(3, 4), how, {"include_self": own})
        for how in ("prod", "mean", "amax", "amin")
        for own in (True, False)
    ],
    **{
        name: [
            (f(3, 4), [torch.tensor([0, -1])]),
            (f(3, 4), [None, torch.tensor([[1], [2]])]),
            (f(3, 4), [torch.tensor([0, 2]), torch.tensor([1, 3])]),
            (f(3, 4, 5), [torch.tensor([0, 2]), None, torch.tensor([[1], [3]])]),
            (f(0, 3), [torch.empty(0, dtype=torch.int64)]),
        ]
        for name in ("aten.index.Tensor", "aten._unsafe_index.Tensor")
    },
    **{
        name: [
            (f(3, 4), [torch.tensor([0, -1])], f(4)),
            (f(3, 4), [None, torch.tensor([1, 1])], torch.tensor(2.0), True),
            (f(3, 4, 5), [torch.tensor([0, 2]), None, torch.tensor([1, 3])], f(2, 4)),
            (i(3), [torch.tensor([1, 1, 2])], i(3), True),
        ]
        for name in ("aten.index_put.default", "aten._unsafe_index_put.default")
    },
    "aten.put.default": [(f(3, 4), torch.tensor([[0, -1], [5, 6]]), f(2, 2)), (f(4), torch.tensor([1, 1]), f(2), True)],
    "aten.masked_fill.Scalar": [(f(3, 4), b(3, 4), 1.5), (f(3, 4), b(4), -INF), (I, b(3, 1), 7), (f(), b(), 2)],
    "aten.masked_fill.Tensor": [(f(3, 4), b(3, 4), torch.tensor(1.5)), (I, b(3, 1), torch.tensor(7))],
    "aten.masked_scatter.default": [(f(3, 4), b(3, 4), f(12)), (i(4), b(4), i(6))],
    "aten.nonzero_static.default": [(b(3, 4), {"size": 5}), (I, {"size": 20, "fill_value": 7}), (f(), {"size": 2})],
}
