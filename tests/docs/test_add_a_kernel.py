"""docs/add_a_kernel.md, followed to the letter in a copy of the tree: its files, its line in the catalog, its test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "add_a_kernel.md").read_text()


def test_the_page(tmp_path: Path) -> None:
    package = tmp_path / "fxhlo"
    package.mkdir()
    for floor in ("lowering", "passes", "runtime", "tools"):
        (package / floor).symlink_to(ROOT / floor)
    for file in (ROOT / "fxhlo").glob("*.py*"):
        (package / file.name).symlink_to(file)
    shutil.copytree(ROOT / "kernels", package / "kernels")
    files = re.findall(r"^```python\n# (\S+)\n(.*?)^```", PAGE, re.M | re.S)
    assert len(files) == PAGE.count("```python") == 4
    for name, text in files:
        path = (package if name.startswith("kernels/") else tmp_path) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    catalog = package / "kernels" / "catalog.py"
    catalog.write_text(
        catalog.read_text().replace('    "silu_and_mul",\n', '    "silu_and_mul",\n    "squared_relu",\n')
    )
    tests = [
        tmp_path / "tests" / "kernels" / "test_squared_relu.py",
        ROOT / "tests" / "kernels" / "test_arrangement.py",
    ]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), *map(str, tests)],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
