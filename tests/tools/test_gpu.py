"""`make gpu` on the host, with a small model: the same code as on a GPU, so that a card that is lent is not spent on what could be known before."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fxhlo.kernels.catalog import kernels
from fxhlo.runtime.core.bundle import Bundle
from fxhlo.runtime.core.plugins import has_gpu
from fxhlo.runtime.core.targets import Target
from fxhlo.tools.bench.decoder import Shape
from fxhlo.tools.gpu import __main__ as gpu
from fxhlo.tools.gpu import record
from fxhlo.tools.gpu.make import MODEL, make

SMALL = {
    **MODEL, "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "vocab_size": 512, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
REQUESTS = 4


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu") / "bundle"
    make(folder, "cpu", SMALL, Shape("decode", REQUESTS, 1, 64))
    return folder


def rows(part: str, bundle: Path) -> list[dict]:
    """As they come out of a part's own process."""
    return [json.loads(json.dumps(row)) for row in gpu.rows(part, bundle, Target("cpu"), fast=True)]


def test_the_bundle_has_the_step_for_its_target(bundle: Path) -> None:
    made = Bundle.open(bundle)
    (entry,) = made.entries.values()
    assert (entry.bindings["tokens"], entry.bindings["requests"], entry.bindings["num_blocks"]) == (
        REQUESTS,
        REQUESTS,
        16,
    )
    assert entry.builds["cpu"].module is not None
    assert not made.manifest.weights


@pytest.mark.conformance
def test_every_part_and_the_page_of_them(bundle: Path) -> None:
    parts = {part: {"rows": rows(part, bundle), "problem": ""} for part in gpu.SECONDS}
    forms = {row["form"]: row for row in parts["step"]["rows"]}
    assert set(forms) == {"kernels", "xla"}
    assert forms["xla"]["same_tokens"] == 1.0
    assert forms["xla"]["kernels"]["fxhlo.ragged_paged_attention"] == "xla"
    assert all(row["step"] > 0 for row in forms.values())
    ours = {one.name for one in kernels().values() if any(form.target == "cuda" for form in one.implementations)}
    assert {row["kernel"] for row in parts["kernels"]["rows"]} == ours
    assert all(row["right"] and not row["problem"] for row in parts["kernels"]["rows"]), parts["kernels"]["rows"]
    assert [row["problem"] for row in parts["attention"]["rows"]] == [""]
    assert [(row["form"], row["problem"]) for row in parts["peer"]["rows"]] == [("eager", "")]
    here = {"card": "a card", "jaxlib": "0", "python": "3", "platform": ""}
    text = record.page({"date": "2026-11-28", "here": here, "parts": parts})
    assert all(f"## {title}\n" in text for title in record.TITLES.values())
    assert "2026-11-28, a card" in text and "| xla |" in text and "100%" in text


def test_a_part_that_fails_says_so_and_ends_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["gpu", "--bundle", str(tmp_path / "none"), "--target", "cpu", "--only", "step", "peer", "--fast"]
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(tmp_path / "out")])
    monkeypatch.setattr(gpu, "_make", lambda folder, target: None)
    assert gpu.main() == 1
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert found["here"]["card"] == "cpu"
    for part in ("step", "peer"):
        assert "there is no such folder" in found["parts"][part]["problem"]
    assert "**It failed**" in (tmp_path / "out" / "gpu.md").read_text()
    assert "step: 0 rows" in capsys.readouterr().out


@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_without_a_gpu_it_says_where_to_go(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--bundle", str(bundle)])
    assert gpu.main() == 1
    told = capsys.readouterr().err
    assert "this machine has no GPU of NVIDIA's; nothing was measured" in told
    assert "bash tools/gpu/on_device.sh" in told
