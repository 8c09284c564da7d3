"""Cases of the rules of lowering/ops/cumulative.py: argument tuples by overload; a dict at the end of one holds keyword arguments."""

from __future__ import annotations

from cases.operands import COMPLEX, DUPLICATES, X, b, f

CASES: dict[str, list[tuple]] = {
    **{
        name: [(f(3, 4), 0), (f(3, 4), -1), (X, 1), (f(2, 0), 1), (f(), 0), (f(5).bfloat16(), 0), (COMPLEX, 1)]
        for name in ("aten.cumsum.default", "aten.cumprod.default", "aten.logcumsumexp.default")
    },
    **{
        name: [(X, 1), (DUPLICATES, 0), (DUPLICATES, -1), (f(), 0), (b(4), 0), (X.bfloat16(), 1)]
        for name in ("aten.cummax.default", "aten.cummin.default")
    },
}
