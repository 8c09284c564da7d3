"""docs/lowering_from_scratch.py: the document runs, stands alone, and does what it says."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

DOCUMENT = Path(__file__).parents[2] / "docs" / "lowering_from_scratch.py"


@pytest.fixture(scope="module")
def scratch() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lowering_from_scratch", DOCUMENT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def program(scratch: ModuleType) -> Any:
    dims = {0: torch.export.Dim("tokens", min=2, max=64)}
    return scratch.capture(scratch.Model(), (torch.arange(5),), (dims,))


def test_it_runs_and_needs_nothing_of_fxhlo() -> None:
    done = subprocess.run([sys.executable, "-P", str(DOCUMENT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "scratch.silu_and_mul became fused_in_jax" in done.stdout
    assert "scratch.silu_and_mul became reference: it takes 4 rows and more, not 3" in done.stdout
    assert done.stdout.count("three calls give what eager torch gives") == 2
    text = DOCUMENT.read_text()
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    assert "torch" in imported
    assert "fxhlo" not in imported
    assert len({node.lineno for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt)}) < 420
    for path in re.findall(r"[\w/]+\.py|(?<=[\[ ])[a-z]+/[\w/]+(?=[\],])", text):
        assert (DOCUMENT.parents[1] / path).exists(), path


def test_a_program_runs_in_eager_torch_after_the_pass(scratch: ModuleType, program: Any) -> None:
    after = scratch.SiluAndMul()(program)
    assert any(node.target is torch.ops.scratch.silu_and_mul.default for node in after.module.graph.nodes)
    inputs = [*program.tensors.values(), torch.tensor([3, 1, 4, 1, 5])]
    for ours, theirs in zip(after.module(*inputs), program.module(*inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_is_missing_is_said_at_once(scratch: ModuleType) -> None:
    class Unknown(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sort().values.cumsum(0) + (x + 1).cumsum(0)

    program = scratch.capture(Unknown(), (torch.ones(4),))
    with pytest.raises(scratch.FxhloError) as caught:
        scratch.lower(program)
    said = str(caught.value)
    assert said.startswith("2 kinds of ops cannot be lowered:\n  aten.cumsum.default (2x) at ")
    assert __file__ in said
    assert "aten.sort.default (1x)" in said
    assert "next: add a rule" in said


def test_a_wrong_rule_stops_at_its_own_op(scratch: ModuleType, program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scratch.RULES, "aten.rsqrt.default", lambda ctx, self: scratch.full((), torch.float32, 1))
    with pytest.raises(
        scratch.FxhloError, match=r"rule of aten\.rsqrt\.default built .*\n  at: .*from_scratch\.py:\d+"
    ):
        scratch.lower(program)
    with pytest.raises(scratch.FxhloError, match="no dimension 'rows'"):
        scratch.emit(program, {"rows": 4})
