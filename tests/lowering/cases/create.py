"""Cases of the rules of lowering/ops/create.py: argument tuples by overload; a dict at the end of one holds keyword arguments."""

from __future__ import annotations

import torch

from cases.operands import SIZES, I, b, f, i

CASES: dict[str, list[tuple]] = {
    "aten.full.default": [([2, 3], 1.5, SIZES), ([2], True), ([], 3), ([0], 1)],
    "aten.full_like.default": [(f(2), 3), (i(2), 2.5), (b(2), 1, {"dtype": torch.int8})],
    "aten.new_full.default": [(f(2), [3], 2)],
    "aten.zeros.default": [([2, 3], SIZES), ([], {"dtype": torch.bool})],
    "aten.ones.default": [([2, 3], SIZES), ([2], {"dtype": torch.int8})],
    **{
        f"aten.{name}.default": [(f(2, 3),), (I, {"dtype": torch.float32})]
        for name in ("zeros_like", "ones_like", "empty_like")
    },
    **{
        f"aten.{name}.default": [(f(2), [3, 1]), (i(2), [0], {"dtype": torch.bool})]
        for name in ("new_zeros", "new_ones", "new_empty")
    },
    "aten.empty.memory_format": [([2, 3], SIZES)],
    "aten.empty_strided.default": [([2, 3], [1, 2], SIZES)],
    "aten.empty_permuted.default": [([2, 3], [1, 0], SIZES)],
    "aten.new_empty_strided.default": [(f(2), [2, 3], [1, 2])],
    "aten.scalar_tensor.default": [(2.5,), (3, {"dtype": torch.int32}), (True, {"dtype": torch.bool})],
    "aten.fill.Scalar": [(f(2), 3), (i(2), 2.5)],
    "aten.fill.Tensor": [(f(2), torch.tensor(3))],
    "aten.arange.default": [(5,), (2.5,), (0,)],
    "aten.arange.start": [(2, 7), (-1.5, 2)],
    "aten.arange.start_step": [(2, 9, 3), (5, 0, -2), (0.0, 1.0, 0.1), (1, 2, 0.25, {"dtype": torch.bfloat16})],
    "prims.iota.default": [
        (5, {"start": 2, "step": 3, "dtype": torch.int64, "device": torch.device("cpu"), "requires_grad": False})
    ],
    "aten.linspace.default": [
        (0, 1, 7),
        (-3.5, 2, 1),
        (0, 9, 4, {"dtype": torch.int64}),
        (0, 1, 5, {"dtype": torch.bfloat16}),
    ],
    "aten.logspace.default": [(0, 2, 5), (0, 3, 4, 2.0)],
    "aten.eye.default": [(3,), (0,)],
    "aten.eye.m": [(2, 4), (3, 2, {"dtype": torch.bool})],
    **{f"aten.{name}_indices.default": [(3, 4), (4, 3, 1), (3, 3, -1)] for name in ("tril", "triu")},
}
