"""Cases of the rules of lowering/ops/norm.py: argument tuples by overload; a dict at the end of one holds keyword arguments."""

from __future__ import annotations

import torch

from cases.operands import IMAGE, INF, X, f

CASES: dict[str, list[tuple]] = {
    **{
        name: [
            (f(3, 4), -1, False),
            (X, 0, False),
            (f(3, 4).bfloat16(), 1, False),
            (f(), 0, False),
            (torch.full((2, 2), -INF), 1, False),
            (f(2, 0), 1, False),
        ]
        for name in ("aten._softmax.default", "aten._log_softmax.default")
    },
    "aten.native_layer_norm.default": [
        (f(2, 3, 4), [4], f(4), f(4), 1e-05),
        (f(2, 3, 4), [3, 4], None, None, 1e-05),
        (f(2, 4).bfloat16(), [4], f(4).bfloat16(), f(4).bfloat16(), 1e-05),
    ],
    "aten._native_batch_norm_legit_no_training.default": [
        (IMAGE, f(3), f(3), f(3), f(3).abs(), 0.1, 1e-05),
        (f(4, 3), None, None, f(3), f(3).abs(), 0.1, 1e-05),
    ],
}
