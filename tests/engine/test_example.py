"""docs/examples/serve_offline.py runs as it stands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "serve_offline.py"


@pytest.mark.conformance
def test_it_answers(model: Path) -> None:
    done = subprocess.run([sys.executable, "-P", str(EXAMPLE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Paris" in done.stdout
