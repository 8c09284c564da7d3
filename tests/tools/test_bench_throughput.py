"""The parts of the bench that start two engines, with engines that only keep time: what is asked of them, and what becomes of their answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fxhlo.tools.bench import throughput
from fxhlo.tools.bench.limits import Limits

PREFILL, STEP = 1e-3, 1e-2
"""Seconds of a prompt's token, and of a decode step, in the engine that is twice as fast."""


class Timed:
    """In place of an Engine: it takes as long as its tokens."""

    made: list[Timed] = []

    def __init__(self, name: str, arguments: dict[str, Any], *, fxhlo: bool, **_: object) -> None:
        self.arguments = arguments
        self.slower = 1 if fxhlo else 2
        self.cached: set[tuple[int, ...]] = set()
        self.jobs: list[tuple[int, int, int]] = []
        Timed.made.append(self)

    def __enter__(self) -> Timed:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def first_token(self) -> float:
        return 1.0

    def run(self, prompts: list[list[int]], max_tokens: int) -> float:
        self.jobs.append((len(prompts), len(prompts[0]), max_tokens))
        keys = [tuple(prompt) for prompt in prompts]
        keep = self.arguments["enable_prefix_caching"]
        computed = sum(len(key) for key in keys if not (keep and key in self.cached))
        self.cached |= set(keys)
        return self.slower * (PREFILL * computed + STEP * (max_tokens - 1))


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Timed]:
    config = {
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
        "intermediate_size": 16, "vocab_size": 32,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(throughput, "Engine", Timed)
    monkeypatch.setattr(throughput, "prepare", lambda say: tmp_path)
    monkeypatch.setattr(Limits, "measure", classmethod(lambda cls, isa="": cls(1e6, {"float32": 1e9})))
    monkeypatch.setattr(Timed, "made", [])
    return Timed.made


@pytest.mark.parametrize("name", sorted(throughput.PARTS))
def test_each_point_is_measured_in_turn(name: str, engines: list[Timed]) -> None:
    rows = throughput.measure(name, "float32", "", lambda line: None, fast=True)
    part = throughput.PARTS[name]
    assert [row.what for row in rows] == [str(point) for point in part.fast]
    for point, row in zip(part.fast, rows, strict=True):
        assert row.ratio == pytest.approx(2)
        assert row.ours == pytest.approx(point.sequences / STEP if point.decode else 1 / PREFILL)
        assert row.most > 0
    ours, peer = engines
    assert ours.jobs == peer.jobs
    most = max(prompt + tokens for _, prompt, tokens in ours.jobs)
    assert most <= ours.arguments["max_model_len"], "vLLM refuses longer requests"
    assert throughput.table(rows, name).row_count == len(rows)


@pytest.mark.parametrize("name", sorted(throughput.PARTS))
def test_all_points_fit_into_the_model(name: str) -> None:
    part = throughput.PARTS[name]
    assert all(point.prompt + point.decode + 1 <= part.max_model_len for point in (*part.points, *part.fast))
