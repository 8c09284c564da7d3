"""The real model, what transformers answers, and a way to run an engine in a process of its own."""

from __future__ import annotations

import inspect
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `serving`

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "build" / "models" / "SmolLM2-135M-Instruct"
SIZES = {"max_model_len": 1024, "max_num_seqs": 8, "max_num_batched_tokens": 64, "num_gpu_blocks_override": 1024}
"""Each program of the real model takes seconds to compile: with the same sizes the next test finds them in the cache."""
LENGTHS = (1, 2, 3, 5, 8, 13, 15, 16, 17, 31, 32, 33, 48, 64, 65, 100, 127, 128, 129, 200, 256, 300, 400, 513, 640, 900)


@pytest.fixture(scope="session")
def model() -> Path:
    if not (MODEL / "model.safetensors").exists():
        subprocess.run([sys.executable, "-m", "fxhlo.tools.prepare_model"], check=True, cwd=ROOT)
    return MODEL


@pytest.fixture(scope="session")
def prompts(model: Path) -> list[list[int]]:
    """Token ids of very different length, from a text that every Python carries."""
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(model)(inspect.getsource(statistics))["input_ids"]
    starts = [37 * index for index in range(len(LENGTHS))]
    return [tokens[start : start + length] for start, length in zip(starts, LENGTHS, strict=True)]


Continued = Callable[[list[list[int]], list[list[int]]], list[list[int]]]


@pytest.fixture(scope="session")
def continued(model: Path) -> Continued:
    """continued(prompts, answers) -> for each answer the tokens that transformers takes greedily, in float32, after its prefixes.

    An answer that is equal to its own is the one that `generate` gives, token for token, in one forward pass instead of 64.
    """
    import torch
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    @cache
    def after(prompt: tuple[int, ...], answer: tuple[int, ...]) -> list[int]:
        with torch.inference_mode():
            logits = reference(torch.tensor([prompt + answer[:-1]]), logits_to_keep=len(answer)).logits[0]
        return logits.argmax(-1).tolist()

    def of_all(prompts: list[list[int]], answers: list[list[int]]) -> list[list[int]]:
        return [after(tuple(prompt), tuple(answer)) for prompt, answer in zip(prompts, answers, strict=True)]

    return of_all


Engine = Callable[..., list[list[dict[str, Any]]]]


@pytest.fixture
def engine(model: Path, tmp_path: Path) -> Engine:
    """engine(runs, **arguments of LLM) -> answers per run; fails with the engine's own output where it fails.

    apart: whether the engine has a process of its own, as it has behind a server, which takes longer to start."""

    def run(
        runs: list[dict[str, Any]],
        *,
        plugins: str | None = None,
        check: bool = True,
        apart: bool = False,
        **arguments: Any,
    ) -> Any:
        job = {
            "engine": {"model": str(model), "seed": 0, "disable_log_stats": True, **SIZES, **arguments},
            "runs": runs,
            "out": str(tmp_path / "answers.json"),
        }
        environment = {**os.environ, "VLLM_LOGGING_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1"}
        if not apart and plugins is None:
            environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if plugins is not None:
            environment["VLLM_PLUGINS"] = plugins
        if plugins == "":  # vLLM's own CPU backend, beside which its platform for TPUs would claim the process
            from fxhlo.tools.bench.engine import HIDDEN

            (tmp_path / "sitecustomize.py").write_text(HIDDEN)
            environment["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB; left alone it wants most of the memory
            environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("generate.py"))],
            input=json.dumps(job), text=True, capture_output=True, env=environment, timeout=900, cwd=tmp_path,
        )  # fmt: skip
        if not check:
            return done
        assert done.returncode == 0, done.stderr[-6000:]
        return json.loads(Path(job["out"]).read_text())

    return run
