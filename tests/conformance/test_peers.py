"""fxhlo beside torchax and torch-mlir on torch's operator database: `make conformance` runs all pairs, and a few whose outcomes are known.

The full run goes on where it stopped and writes build/conformance/peers.md and peers.png. `make conformance EVERY=12` takes every twelfth op.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def peers() -> Iterator[ModuleType]:
    sys.path.insert(0, str(HERE))
    try:
        import peers

        yield peers
    finally:
        sys.path.remove(str(HERE))


@pytest.mark.conformance
def test_known_pairs(peers: ModuleType, tmp_path: Path) -> None:
    """The run tells passing, refusing and dtypes apart; a second one has nothing to do."""
    pairs = [(op, dtype) for op in ("add", "erf") for dtype in ("float32", "bool")] + [
        ("normal.number_mean", "float32")
    ]
    found = peers.run(pairs, jobs=1, out=tmp_path)
    assert {outcome.status for outcome in found["fxhlo"].values()} == {"passed"}
    assert all(outcome.samples for outcomes in found.values() for outcome in outcomes.values())
    for peer in ("torchax", "torch-mlir"):
        assert found[peer]["add", "float32"].status == "passed"
        assert found[peer]["erf", "bool"].status == "refused"
    assert found["torchax"]["add", "bool"].reason.startswith("result 0 is torch.int64, not torch.bool")
    assert "| fxhlo | 5 | 5 | 0 | 0 | 0 |" in (tmp_path / "peers.md").read_text()
    assert (tmp_path / "peers.png").stat().st_size > 1000
    lines = {path: path.read_text() for path in tmp_path.glob("*.jsonl")}
    assert peers.run(pairs, jobs=1, out=tmp_path) == peers.load(pairs, out=tmp_path) == found
    assert {path: path.read_text() for path in tmp_path.glob("*.jsonl")} == lines


@pytest.mark.conformance
@pytest.mark.timeout(24 * 3600)
def test_beside_the_peers(peers: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    """fxhlo is wrong on nothing, crashes on nothing, refuses only what docs/ops.md lists, and passes at least as much as each peer."""
    op_db = peers.op_db
    every = int(os.environ.get("FXHLO_CONFORMANCE_EVERY", "1"))
    with capfd.disabled():
        found = peers.run(op_db.pairs(op_db.ORIENTATION, every), jobs=2)
        print(f"\n{peers.report(found)}")
    counts = peers.counts(found)
    assert counts["fxhlo"]["wrong"] == counts["fxhlo"]["crash"] == 0
    assert not op_db.unexplained(found["fxhlo"].values())
    assert counts["fxhlo"]["passed"] >= max(counts[peer]["passed"] for peer in peers.peers.PEERS)
