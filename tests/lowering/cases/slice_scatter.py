"""Cases of the rules of lowering/ops/slice_scatter.py: argument tuples by overload; a dict at the end of one holds keyword arguments."""

from __future__ import annotations

from cases.operands import f

CASES: dict[str, list[tuple]] = {
    "aten.slice_scatter.default": [
        (f(5, 4), f(2, 4), 0, 1, 3),
        (f(5, 4), f(5, 2), -1, 0, 4, 2),
        (f(5, 4), f(0, 4), 0, 3, 1),
    ],
    "aten.select_scatter.default": [(f(5, 4), f(4), 0, 2), (f(5, 4), f(5), -1, -1)],
    "aten.diagonal_scatter.default": [(f(3, 4), f(3)), (f(3, 4), f(2), -1), (f(2, 3, 4), f(2, 3), 1, 1, 2)],
}
