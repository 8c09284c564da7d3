"""Architectures other than the real model's, small and random: the engine's greedy tokens are those of transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from architectures import CONFIGS, NEW_TOKENS, prompts

HERE = Path(__file__).parent
REFUSED = {
    "mixtral": "mixtures of experts",
    "mamba": "state-space and linear-attention layers",
}
"""What has no composite yet, and what the start says of it."""
TOLERANCES = {"bloom": 2e-3, "apertus": 4e-3}
"""Bloom: vLLM has the exact GELU where transformers has its approximation by tanh. Apertus: vLLM keeps the activation's
parameters in bfloat16."""
QUICK = ("qwen3", "gemma2", "mamba")
SERVED = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.conformance)
    for name in CONFIGS
    if name not in REFUSED
]
SIZES = {
    "max_model_len": 128, "max_num_seqs": 4, "max_num_batched_tokens": 32, "skip_tokenizer_init": True, "dtype": "float32",
    "kv_cache_memory_bytes": 64 << 20,
}  # fmt: skip


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The model's folder, with reference.json."""
    name = request.node.callspec.params["name"]
    done = subprocess.run(
        [sys.executable, "-P", str(HERE / "architectures.py"), name, str(tmp_path / name)],
        capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return tmp_path / name


def job(folder: Path) -> dict[str, Any]:
    sampling = {"temperature": 0, "max_tokens": NEW_TOKENS, "ignore_eos": True, "logprobs": 1, "detokenize": False}
    return {"runs": [{"prompts": prompts(), "sampling": sampling}], "model": str(folder), **SIZES}


@pytest.mark.parametrize("name", SERVED)
def test_greedy_tokens_are_those_of_transformers(name: str, folder: Path, engine: Callable[..., Any]) -> None:
    (answers,) = engine(**job(folder))
    expected = json.loads((folder / "reference.json").read_text())
    assert [answer["tokens"] for answer in answers] == [answer["tokens"] for answer in expected]
    for ours, theirs in zip(answers, expected, strict=True):
        values = [
            dict(map(tuple, position))[token] for position, token in zip(ours["logprobs"], ours["tokens"], strict=True)
        ]
        assert values == pytest.approx(theirs["logprobs"], abs=TOLERANCES.get(name, 1e-4))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.conformance) for name in REFUSED]
)
def test_what_is_not_supported_is_refused_at_the_start(name: str, folder: Path, engine: Callable[..., Any]) -> None:
    done = engine(**job(folder), check=False)
    assert done.returncode != 0
    assert f"fxhlo does not support {REFUSED[name]}" in done.stderr
