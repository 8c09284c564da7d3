"""The run beside the peers on a handful of pairs whose outcomes are known: it tells passing, refusing and dtypes apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.conformance
def test_known_pairs(tmp_path: Path) -> None:
    script = [sys.executable, "-P", "-W", "ignore"]
    pairs = ["--ops", "^(add|erf)$", "--jobs", "1", "--out", str(tmp_path)]
    for command in ([str(HERE / "op_db.py"), "run"], [str(HERE / "peers.py"), "run", "--every", "1"]):
        subprocess.run([*script, *command, *pairs], check=True, capture_output=True, text=True)
    sys.path.insert(0, str(HERE))
    try:
        import op_db
    finally:
        sys.path.remove(str(HERE))
    ours, torchax, torch_mlir = (
        op_db.load(tmp_path / f"{name}.jsonl") for name in ("results", "torchax", "torch-mlir")
    )
    assert {outcome.status for outcome in ours.values()} == {"passed"}
    assert torchax["add", "float32"].status == torch_mlir["add", "float32"].status == "passed"
    assert torchax["erf", "bool"].status == torch_mlir["erf", "bool"].status == "refused"
    assert torchax["add", "bool"].reason.startswith("result 0 is torch.int64, not torch.bool")
    assert "8 of 8 pairs" in (tmp_path / "peers.md").read_text()
    assert (tmp_path / "peers.png").stat().st_size > 1000
