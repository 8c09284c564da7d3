"""Cases of the rules of lowering/ops/embedding.py: argument tuples by overload; a dict at the end of one holds keyword arguments."""

from __future__ import annotations

import torch

from cases.operands import INF, f

CASES: dict[str, list[tuple]] = {
    "aten.embedding.default": [
        (f(5, 3), torch.tensor([[0, 4], [2, 2]])),
        (f(5, 3), torch.tensor(1)),
        (f(5, 3), torch.tensor([], dtype=torch.int64)),
    ],
    "aten.embedding_renorm.default": [
        (f(5, 3) * 3, torch.tensor([0, 2, 2]), 1.0, p) for p in (2.0, 1.0, INF, -INF, 0.0)
    ],
    **{
        name: [(f(6, 3), torch.tensor([0, 2, 2, 5]), torch.tensor([0, 2]), False, mode) for mode in (0, 1, 2)]
        + [(f(6, 3), torch.tensor([0, 2, 2, 5]), torch.tensor([0, 0, 4]), False, 0, False, f(4), True)]
        for name in ("aten._embedding_bag.default", "aten._embedding_bag_forward_only.default")
    },
}
