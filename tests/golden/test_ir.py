"""Golden IR: what one op of each family becomes, to the letter, so that a change of the emitted module is seen in review.

`FXHLO_ACCEPT=1 make test TESTS=tests/golden` writes the files anew; read the diff before you commit it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fxhlo

HERE = Path(__file__).parent
ACCEPT = "FXHLO_ACCEPT"
X = torch.zeros(2, 3)
FAMILIES: dict[str, tuple[Callable[..., object], tuple[torch.Tensor, ...]]] = {
    "elementwise": (lambda x, y: torch.floor_divide(x, y), (torch.zeros(2, 3, dtype=torch.int32), torch.zeros(3, dtype=torch.int32))),
    "activation": (lambda x: torch.nn.functional.silu(x), (X.bfloat16(),)),
    "compare": (lambda x: x > 0.5, (X,)),
    "convert": (lambda x: x.to(torch.int32), (X,)),
    "reduce": (lambda x: x.max(1), (X,)),
    "cumulative": (lambda x: x.cumsum(1), (X,)),
    "shape": (lambda x: torch.roll(x, 1, 1), (X,)),
    "index": (lambda x, i: x[:, i], (X, torch.tensor([2, -1]))),
    "sort": (lambda x: x.sort(1), (X,)),
    "matmul": (lambda x, y: x @ y, (X.bfloat16(), torch.zeros(3, 4).bfloat16())),
    "convolution": (lambda x, w: torch.nn.functional.conv2d(x, w, stride=2), (torch.zeros(1, 2, 5, 5), torch.zeros(3, 2, 3, 3))),
    "norm": (lambda x: torch.nn.functional.layer_norm(x, (3,)), (X,)),
    "pool": (lambda x: torch.nn.functional.avg_pool2d(x, 2), (torch.zeros(1, 1, 4, 4),)),
    "create": (lambda x: torch.arange(2, 11, 3) + x, (torch.zeros(3, dtype=torch.int64),)),
    "random": (lambda x: torch.rand_like(x), (X,)),
    "control_flow": (lambda x: torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,)), (X,)),
    "mutation": (lambda x: x[0].add_(1), (X,)),
}  # fmt: skip


class Module(torch.nn.Module):
    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> object:
        return self.function(*args)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_module_is_the_accepted_one(family: str) -> None:
    function, args = FAMILIES[family]
    text = _plain(fxhlo.lower(Module(function), args).text)
    path = HERE / f"{family}.mlir"
    if os.environ.get(ACCEPT):
        path.write_text(text)
    assert path.exists(), f"no accepted module: {ACCEPT}=1 make test TESTS=tests/golden"
    assert text == path.read_text(), (
        f"the module has changed: read the difference, then {ACCEPT}=1 make test TESTS=tests/golden"
    )


def test_every_file_belongs_to_a_family() -> None:
    assert {path.stem for path in HERE.glob("*.mlir")} == set(FAMILIES)


def _plain(text: str) -> str:
    """Without places in files, which move with every line."""
    text = re.sub(r" loc\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)", "", text)
    return "".join(line + "\n" for line in text.splitlines() if line and not line.startswith("#loc"))
