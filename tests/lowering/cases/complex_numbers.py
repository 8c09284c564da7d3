"""Cases of the rules of lowering/ops/complex_numbers.py: argument tuples by overload; a dict at the end of one holds keyword arguments."""

from __future__ import annotations

import torch

from cases.operands import X, f, i

CASES: dict[str, list[tuple]] = {
    "aten._neg_view.default": [(X,), (X.to(torch.bfloat16),), (i(3, 4),), (torch.complex(f(2), f(2)),)],
    "aten.view_as_complex.default": [(f(3, 2),)],
    "aten.view_as_complex_copy.default": [(f(3, 2),)],
    "aten.complex.default": [(f(3), f(3))],
    "aten.polar.default": [(f(3), f(3))],
}
