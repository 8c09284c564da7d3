"""docs/add_a_target.md is true: its snippet runs, and a target that somebody registers is one like the others."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fxhlo.runtime.core.errors import UnsupportedError
from fxhlo.runtime.core.targets import KNOWN, Specification, Target, register

ROOT = Path(__file__).parents[2]


def test_the_snippet_runs(tmp_path: Path) -> None:
    (snippet,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "add_a_target.md").read_text(), re.M | re.S)
    (tmp_path / "snippet.py").write_text(snippet)
    done = subprocess.run([sys.executable, "-P", "snippet.py"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "256: lab; \n100: " in done.stdout
    assert "lab: rows of 100 numbers are no multiple of 128" in done.stdout


def test_a_registered_target() -> None:
    specification = Specification(family="cpu", memory=2**30, bandwidth=1e9)
    register("test-lab", specification)
    register("test-lab", specification)  # the same again is no mistake
    assert Target.parse("test-lab").memory == KNOWN["test-lab"].memory == 2**30
    with pytest.raises(UnsupportedError, match="there is a target cpu already"):
        register("cpu", specification)


def test_the_table_of_targets_is_what_the_code_knows() -> None:
    text = (ROOT / "docs" / "targets.md").read_text()
    for name, known in KNOWN.items():
        if known.family != "tpu":
            continue
        (row,) = (line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        assert known.memory and known.bandwidth
        assert f"{known.memory / 2**30:.2f} GiB | {known.bandwidth / 1e9:,.0f} GB/s" in row
        assert f"{known.flops['bfloat16'] / 1e12:.0f} TFLOP/s | {known.vmem // 2**20} MiB | {known.topology} |" in row
