"""`lower-model check` on files as users export them: everything that stands in the way, at once; in a process that knows nothing of the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

COMMAND = str(Path(sys.executable).with_name("lower-model"))
MY_OPS = """
import torch

@torch.library.custom_op("fxhlo_check::swirl", mutates_args=())
def swirl(x: torch.Tensor, turns: int) -> torch.Tensor:
    return x.roll(turns)

@swirl.register_fake
def _(x, turns):
    return torch.empty_like(x)
"""


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).softmax(-1)


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(8 * 4 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).flatten(1))


class ByValue(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = torch.nonzero(x).sum() + torch.nonzero(y).sum()
        x = x.clone()
        x[x > 0] = y.flatten()
        return found, x.unique().sum(), x, torch.linalg.eigvals(x).real


class Swirled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = torch.ops.fxhlo_check.swirl(self.linear(x), 2)
        return torch.ops.fxhlo_check.swirl(y, 3), torch.poisson(y.abs())


def exported(path: Path, module: nn.Module, *args: Any, **options: Any) -> Path:
    torch.export.save(torch.export.export(module.eval(), args, **options), path)
    return path


def check(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, "check", *map(str, words)], capture_output=True, text=True)


def line_of(text: str) -> str:
    """This file and the first line of it that holds `text`."""
    lines = Path(__file__).read_text().splitlines()
    return f"{__file__}:{1 + next(number for number, line in enumerate(lines) if text in line)}"


def test_what_can_be_lowered(tmp_path: Path) -> None:
    batch = {0: Dim("batch", min=1, max=64)}
    plain = exported(tmp_path / "mlp.pt2", Mlp(), torch.ones(2, 8))
    dynamic = exported(tmp_path / "images.pt2", Images(), torch.ones(2, 3, 8, 8), dynamic_shapes=(batch,))
    done = check(plain)
    assert (done.returncode, done.stdout) == (0, "mlp: all 6 ops can be lowered\n"), done.stderr
    done = check(dynamic, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["missing"] == []
    assert done.stderr == ""


def test_a_model_of_transformers_needs_no_transformers(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertModel(BertConfig(vocab_size=50, max_position_embeddings=32, **size))
    done = check(exported(tmp_path / "bert.pt2", model, torch.zeros(1, 7, dtype=torch.long)))
    assert done.returncode == 0, done.stderr
    assert "ops can be lowered" in done.stdout


@pytest.mark.conformance
def test_everything_that_depends_on_data(tmp_path: Path) -> None:
    path = exported(tmp_path / "by_value.pt2", ByValue(), torch.ones(4, 4), torch.ones(4, 4))
    done = check(path, "--json")
    assert done.returncode == 1
    assert done.stderr == ""
    found = json.loads(done.stdout)
    missing = {one["op"]: one for one in found["missing"]}
    assert {op: one["count"] for op, one in missing.items()} == {
        "aten.nonzero.default": 2,
        "aten._unique2.default": 1,
        "aten.index_put.default": 1,
        "aten.linalg_eig.default": 1,
    }
    assert missing["aten.nonzero.default"]["where"] == line_of("torch.nonzero(x)")
    assert missing["aten.index_put.default"]["where"] == line_of("x[x > 0] = y")
    assert "shape depends on data" in missing["aten._unique2.default"]["reason"]
    assert "torch.where(mask, values, x)" in missing["aten.index_put.default"]["reason"]
    assert found["next"] == "change the model at these lines as the reasons say"
    text = check(path)
    assert text.returncode == 1
    assert text.stdout.startswith("by_value: 4 kinds of ops cannot be lowered\n  aten.nonzero.default (2x) at ")
    assert text.stdout.endswith("next: change the model at these lines as the reasons say\n")


def test_an_op_of_ones_own(tmp_path: Path) -> None:
    ops = tmp_path / "my_ops.py"
    ops.write_text(MY_OPS)
    exec(compile(MY_OPS, str(ops), "exec"), {})
    path = exported(tmp_path / "swirled.pt2", Swirled(), torch.ones(4, 4))
    here = line_of("swirl(self.linear(x), 2)")
    done = check(path)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "swirled: 1 kinds of ops cannot be lowered",
        f"  fxhlo_check.swirl.default (2x) at {here}: the op is not registered in this process",
        "  next: name the module that registers them, as --import my_ops or --import my_ops.py; then this lists all that has no rule",
    ]
    done = check(path, "--import", ops)
    assert done.returncode == 1
    assert done.stdout.splitlines()[1:3] == [
        f"  fxhlo_check.swirl.default (2x) at {here}",
        f"  aten.poisson.default (1x) at {line_of('torch.poisson(y.abs())')}: it is drawn by rejection, "
        "a number of steps that depends on data: draw it on the host",
    ]


@pytest.mark.parametrize(
    ("content", "options", "code", "said"),
    [
        (b"not a zip", (), 1, "the exported program cannot be read: "),
        (None, ("--import", "no_such_module"), 2, "--import no_such_module: there is no module no_such_module"),
    ],
)
def test_what_cannot_be_read(
    tmp_path: Path, content: bytes | None, options: tuple[str, ...], code: int, said: str
) -> None:
    path = tmp_path / "relu.pt2"
    if content is None:
        exported(path, nn.ReLU(), torch.ones(2))
    else:
        path.write_bytes(content)
    done = check(path, *options)
    assert done.returncode == code
    assert done.stdout == ""
    assert f"error: {said}" in done.stderr
    assert "next: " in done.stderr
    assert "Traceback" not in done.stderr
