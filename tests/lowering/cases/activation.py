"""Cases of the rules of lowering/ops/activation.py: argument tuples by overload; a dict at the end of one holds keyword arguments."""

from __future__ import annotations

from cases.operands import X, f

CASES: dict[str, list[tuple]] = {
    # of an infinity eager gives NaN or infinity by the element's place
    "aten.gelu.default": [
        (x, {"approximate": how}) for x in (f(4), X[::2].bfloat16(), f(0)) for how in ("none", "tanh")
    ],
}
