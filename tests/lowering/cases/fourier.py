"""Cases of the rules of lowering/ops/fourier.py: argument tuples by overload; a dict at the end of one holds keyword arguments."""

from __future__ import annotations

import torch

from cases.operands import f

CASES: dict[str, list[tuple]] = {
    "aten._fft_c2c.default": [
        (torch.complex(f(3, 4), f(3, 4)), [1], 0, True),
        (torch.complex(f(3, 4), f(3, 4)), [0, 1], 2, False),
    ],
    "aten._fft_r2c.default": [(f(3, 5), [1], 0, True), (f(3, 4), [0], 1, False)],
    "aten._fft_c2r.default": [(torch.complex(f(3, 3), f(3, 3)), [1], 2, 5)],
}
