"""Cases of the rules of lowering/ops/convolution.py: argument tuples by overload; a dict at the end of one holds keyword arguments."""

from __future__ import annotations

from cases.operands import IMAGE, VOLUME, f

CASES: dict[str, list[tuple]] = {
    "aten.convolution.default": [
        (IMAGE, f(4, 3, 3, 2), f(4), [1, 2], [1, 0], [1, 1], False, [0, 0], 1),
        (f(1, 4, 9), f(6, 2, 3), None, [2], [1], [2], False, [0], 2),
        (f(2, 4, 5, 5), f(4, 3, 3, 3), f(6), [2, 2], [1, 1], [1, 1], True, [1, 0], 2),
        (VOLUME, f(2, 1, 2, 2, 2), None, [1], [0], [1], False, [0], 2),
        (IMAGE.bfloat16(), f(4, 3, 3, 3).bfloat16(), f(4).bfloat16(), [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
        (f(0, 3, 6, 6), f(4, 3, 3, 3), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
    ],
}
