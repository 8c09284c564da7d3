"""Layers with a window hold only their window: answers stay those of transformers while blocks are freed, reused and preempted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from architectures import NEW_TOKENS, prompts

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 2: layers with a window of 16 tokens and layers without, in turn."""
    path = tmp_path_factory.mktemp("models") / "gemma2"
    done = subprocess.run(
        [sys.executable, "-P", str(HERE / "architectures.py"), "gemma2", str(path)],
        capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return path


def test_answers_under_pressure_are_those_of_transformers(folder: Path, engine: Callable[..., Any]) -> None:
    """17 blocks for four requests that need up to six of one group and three of the other: some are preempted. The last request
    finds its prefix in the cache, of which the windowed layers have dropped the beginning."""
    sampling = {"temperature": 0, "max_tokens": NEW_TOKENS, "ignore_eos": True, "detokenize": False}
    longest = prompts()[-1]
    crowd, twice = {"prompts": 2 * prompts()}, {"prompts": [longest, longest], "one_by_one": True}
    first, second = engine(
        [{**run, "sampling": sampling} for run in (crowd, twice)], model=str(folder), max_model_len=128, max_num_seqs=4,
        max_num_batched_tokens=32, dtype="float32", skip_tokenizer_init=True, kv_cache_memory_bytes=64 << 20,
        num_gpu_blocks_override=18,
    )  # fmt: skip
    expected = [answer["tokens"] for answer in json.loads((folder / "reference.json").read_text())]
    assert [answer["tokens"] for answer in first] == 2 * expected
    assert [answer["tokens"] for answer in second] == 2 * expected[-1:]
    assert second[1]["cached"] >= 32
