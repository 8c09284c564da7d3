"""Cases of the rules of lowering/ops/convert.py: argument tuples by overload; a dict at the end of one holds keyword arguments."""

from __future__ import annotations

import torch

from cases.operands import X, b, f, i

CASES: dict[str, list[tuple]] = {
    "aten.view.dtype": [
        (b(2, 4), torch.int16),
        (b(3), torch.uint8),
        (torch.tensor([0, 1, 256], dtype=torch.int16), torch.bool),
        (f(2, 4), torch.int32),
        (f(2, 4), torch.int16),
        (f(2, 4), torch.float64),
        (i(2, 4, dtype=torch.int8), torch.int32),
        (f(3).bfloat16(), torch.int16),
        (i(4, low=0, dtype=torch.uint8), torch.int8),
    ],
    "aten._to_copy.default": [
        (x, {"dtype": dtype})
        for dtype in (torch.int32, torch.bfloat16, torch.bool, torch.float64, torch.int8)
        for x in (X[2], i(3), b(3), f(3).bfloat16())
    ]
    + [(f(3), {"dtype": torch.float8_e4m3fn}), (f(3).to(torch.float8_e5m2), {"dtype": torch.float32})],
    "prims.convert_element_type.default": [(X[2], torch.int32), (i(3), torch.bool), (f(3), torch.bfloat16)],
}
