"""Cases of the rules of lowering/ops/compare.py: argument tuples by overload; a dict at the end of one holds keyword arguments."""

from __future__ import annotations

import torch

from cases.operands import I, b, f, i
from fxhlo.lowering.registry import rules

CASES: dict[str, list[tuple]] = {
    "aten.where.self": [
        (b(3, 4), f(3, 4), f(4)),
        (b(4), f(3, 4), I),
        (b(3, 4), torch.tensor(1.0), I),
        (b(1), f(0), f(0)),
    ],
}

for _name in rules():
    if ("_shift" in _name or "shift__" in _name) and "polynomial" not in _name:
        _counts = torch.tensor([[0, 1, 5, 63], [2, 3, 40, 1], [4, 6, 1, 2]])
        CASES[_name] = {
            "Tensor": [
                (I, _counts),
                (I.to(torch.int8), (_counts % 7).to(torch.int8)),
                (i(3, low=0, dtype=torch.uint8), torch.tensor([1, 2, 7], dtype=torch.uint8)),
            ],
            "Scalar_Tensor": [(-5, _counts)],
        }.get(_name.split(".")[2], [(I, 3), (I, 0)])
    elif _name.startswith("aten.bitwise_") and _name.endswith("Scalar_Tensor"):
        CASES[_name] = [(5, I), (True, b(3))]
