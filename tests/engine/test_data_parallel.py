"""Two engines behind one server: the answers of one, each engine with cores of its own, and an end in order."""

from __future__ import annotations

import os
import re
import signal
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from serving import Server

SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.5, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
OPTIONS = (
    "--data-parallel-size", "2", "--api-server-count", "1", "--dtype", "float32",
    "--max-model-len", "128", "--max-num-seqs", "4", "--max-num-batched-tokens", "16",
    "--kv-cache-memory-bytes", str(16 << 20), "--skip-tokenizer-init",
)  # fmt: skip
PROMPTS = [[(7 * index + 3 * at) % 90 + 2 for at in range(3 + index)] for index in range(12)]
COUNT = 24


def saved(kind: str, folder: Path) -> Any:
    """A random model of transformers'."""
    import torch
    import transformers

    torch.manual_seed(0)
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2} if kind == "Mixtral" else {}
    config = getattr(transformers, f"{kind}Config")(**SIZES, **experts)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    model.save_pretrained(folder)
    return model


def greedy(model: Any, prompt: list[int]) -> list[int]:
    import torch

    with torch.inference_mode():
        made = model.generate(
            torch.tensor([prompt]), max_new_tokens=COUNT, min_new_tokens=COUNT, do_sample=False, pad_token_id=0
        )
    return made[0, len(prompt) :].tolist()


@pytest.mark.parametrize("kind", ["Llama", pytest.param("Mixtral", marks=pytest.mark.conformance)])
def test_two_engines_give_the_answers_of_one(kind: str, tmp_path: Path) -> None:
    """Engines with experts run in step with each other, and each has all experts."""
    model = saved(kind, tmp_path)
    right = [greedy(model, prompt) for prompt in PROMPTS]
    with Server(tmp_path, *OPTIONS) as server:
        server.wait()

        def ask(prompt: list[int]) -> list[int]:
            request = {
                "model": str(tmp_path), "prompt": prompt, "max_tokens": COUNT, "temperature": 0, "ignore_eos": True,
                "logit_bias": {"1": -100.0}, "return_token_ids": True,
            }  # fmt: skip
            return server.post("/v1/completions", request)["choices"][0]["token_ids"]

        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            assert list(pool.map(ask, PROMPTS)) == right
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as response:
            metrics = response.read().decode()
        tokens = re.findall(r'^vllm:generation_tokens_total\{engine="(\d)".* (\S+)$', metrics, re.MULTILINE)
        assert {engine for engine, count in tokens if float(count) > 0} == {"0", "1"}
        engines = [
            one for one in psutil.Process(server._process.pid).children(True) if "EngineCore" in " ".join(one.cmdline())
        ]
        cores = [set(one.cpu_affinity()) for one in engines]
        assert len(cores) == 2
        if len(os.sched_getaffinity(0)) > 1:
            assert not cores[0] & cores[1]
        server._process.send_signal(signal.SIGTERM)
        code, log = server.end()
        assert code == 0, log[-3000:]
        assert not list(Path(tempfile.gettempdir()).glob(f"fxhlo-startup-{server._process.pid}.*"))
