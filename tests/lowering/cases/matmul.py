"""Cases of the rules of lowering/ops/matmul.py: argument tuples by overload; a dict at the end of one holds keyword arguments."""

from __future__ import annotations

import torch

from cases.operands import EIGHT, NAN, UNUSED_PRODUCTS, f, i

CASES: dict[str, list[tuple]] = {
    "aten.vdot.default": [(f(5), f(5)), (torch.complex(f(4), f(4)), torch.complex(f(4), f(4)))],
    "aten.mm.default": [
        (f(3, 4), f(4, 2)),
        (f(3, 4).bfloat16(), f(4, 2).bfloat16()),
        (i(2, 3), i(3, 2)),
        (f(0, 3), f(3, 2)),
        (f(2, 0), f(0, 3)),
    ],
    "aten.bmm.default": [(f(2, 3, 4), f(2, 4, 2)), (f(2, 0, 4), f(2, 4, 2))],
    "aten._int_mm.default": [(i(32, 8, dtype=torch.int8), i(8, 16, dtype=torch.int8))],
    "aten.dot.default": [(f(4), f(4)), (i(3), i(3))],
    "aten.mv.default": [(f(3, 4), f(4)), (i(2, 3), i(3))],
    **{name: [(f(2, 3).bfloat16(), f(3, 2).bfloat16(), torch.float32)] for name in ("aten.mm.dtype",)},
    "aten.bmm.dtype": [(f(2, 2, 3).bfloat16(), f(2, 3, 2).bfloat16(), torch.float32)],
    "aten.addmm.default": [
        (f(2), f(3, 4), f(4, 2)),
        (f(3, 2), f(3, 4), f(4, 2), {"beta": 0.5, "alpha": 2}),
        (torch.full((2,), NAN), f(3, 4), f(4, 2), {"beta": 0}),
        *UNUSED_PRODUCTS,
        (i(2), i(3, 4), i(4, 2)),
        (f(2).bfloat16(), f(3, 4).bfloat16(), f(4, 2).bfloat16()),
    ],
    "aten.baddbmm.default": [
        (f(1, 9, 9), torch.full((1, 9, 9), NAN), f(1, 9, 9), {"alpha": 0}),
        (f(1, 3, 3), torch.full((1, 3, 3), NAN), f(1, 3, 3), {"alpha": 0}),
        (f(2, 3, 2), f(2, 3, 4), f(2, 4, 2)),
        (f(2), f(2, 3, 4), f(2, 4, 2), {"beta": 0.5, "alpha": 2}),
    ],
    "aten.addbmm.default": [
        (f(3, 2), torch.full((2, 3, 4), NAN), f(2, 4, 2), {"alpha": 0}),
        (f(3, 2), f(2, 3, 4), f(2, 4, 2)),
        (f(2), f(2, 3, 4), f(2, 4, 2), {"beta": 0.5, "alpha": 2}),
    ],
    "aten.addmv.default": [
        (f(3), torch.full((3, 4), NAN), f(4), {"alpha": 0}),
        (f(3), torch.full((3, 4), NAN), f(4), {"alpha": 0, "beta": 0}),
        (f(3), f(3, 4), f(4)),
        (f(1), f(3, 4), f(4), {"beta": 0, "alpha": 2}),
    ],
    "aten.addr.default": [(f(3, 4), f(3), f(4)), (f(4), f(3), f(4), {"beta": 2, "alpha": 0.5}), (i(3, 4), i(3), i(4))],
    "aten._grouped_mm.default": [
        (f(8, 16).bfloat16(), f(3, 16, 32).bfloat16(), torch.tensor([2, 2, 8], dtype=torch.int32)),
        (f(2, 4, 16).bfloat16(), f(16, 32).bfloat16(), torch.tensor([16, 32], dtype=torch.int32)),
        (f(2, 4, 16).bfloat16(), f(2, 16, 32).bfloat16()),
    ],
    "aten._scaled_mm.default": [
        (EIGHT, EIGHT.t(), torch.tensor(0.5), torch.tensor(2.0), {"out_dtype": torch.float32}),
        (EIGHT, EIGHT.t(), torch.tensor(0.5), torch.tensor(2.0), f(16).bfloat16(), None, torch.bfloat16),
        (EIGHT, EIGHT.t(), f(16, 1).abs(), f(1, 16).abs(), {"out_dtype": torch.bfloat16}),
    ],
    "aten._scaled_mm_v2.default": [
        (EIGHT, EIGHT.t(), [torch.tensor(0.5)], [0], [0], [torch.tensor(2.0)], [0], [0], None, torch.float32),
        (EIGHT, EIGHT.t(), [f(16, 1).abs()], [1], [0], [f(1, 16).abs()], [1], [0], f(16).bfloat16(), torch.bfloat16),
    ],
}
