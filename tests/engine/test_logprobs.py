"""Log-probabilities of all of the vocabulary, in every mode of vLLM's logprobs_mode, beside transformers' logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fxhlo.tools.architectures.compare import Worker
from fxhlo.tools.architectures.reference import Reference

MODES = ("raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits")
SIZES = {
    "max_model_len": 128, "max_num_seqs": 4, "max_num_batched_tokens": 32, "skip_tokenizer_init": True, "dtype": "float32",
    "kv_cache_memory_bytes": 64 << 20, "max_logprobs": -1,
}  # fmt: skip
COMMON = {"max_tokens": 3, "ignore_eos": True, "detokenize": False}
VOCABULARY, TOP_K, TEMPERATURE = 320, 5, 0.7


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "Qwen3ForCausalLM"
    with (tmp_path / "log.txt").open("w") as log, Worker("reference", log, {"VLLM_PLUGINS": ""}) as worker:
        assert worker.ask(str(made)), (tmp_path / "log.txt").read_text()[-3000:]
    assert not Reference.load(made).error
    return made


def shown(logits: torch.Tensor, mode: str, filtered: bool) -> torch.Tensor:
    """What vLLM shows of these logits [N, V] in this mode."""
    if mode.startswith("processed_") and filtered:
        logits = logits / TEMPERATURE
        logits = torch.where(logits < logits.topk(TOP_K).values[:, -1:], -torch.inf, logits)
    return logits if mode.endswith("_logits") else torch.log_softmax(logits, -1)


def values(positions: list[Any]) -> torch.Tensor:
    """[N, V] of entries [id, value, ...] of all tokens."""
    found = torch.full((len(positions), VOCABULARY), torch.nan)
    for row, entries in zip(found, positions, strict=True):
        for token, value, *_ in entries:
            row[token] = value
    return found


@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=() if mode == MODES[-1] else pytest.mark.conformance) for mode in MODES]
)
def test_every_token_has_its_value(mode: str, folder: Path, engine: Callable[..., Any]) -> None:
    from transformers import AutoModelForCausalLM

    some = [answer.prompt for answer in Reference.load(folder).answers[1:4]]
    sampling = [
        {**COMMON, "temperature": 0, "logprobs": -1, "prompt_logprobs": -1},
        {**COMMON, "temperature": TEMPERATURE, "top_k": TOP_K, "seed": 1, "logprobs": -1},
        {**COMMON, "temperature": 0, "logprobs": 2},
    ]
    (answers,) = engine([{"prompts": some, "sampling": sampling}], model=str(folder), logprobs_mode=mode, **SIZES)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for index, (prompt, answer) in enumerate(zip(some, answers, strict=True)):
        with torch.inference_mode():
            logits = reference(torch.tensor([prompt + answer["tokens"]])).logits[0]
        expected = shown(logits[len(prompt) - 1 : -1], mode, filtered=index == 1)
        if index == 2:
            for position, entries in zip(expected, answer["logprobs"], strict=True):
                assert {token for token, _ in entries} == set(position.topk(2).indices.tolist())
            continue
        torch.testing.assert_close(values(answer["logprobs"]), expected, rtol=1e-4, atol=1e-4)
        if index == 0:
            of_prompt = shown(logits[: len(prompt) - 1], mode, filtered=False)
            torch.testing.assert_close(values(answer["prompt_logprobs"][1:]), of_prompt, rtol=1e-4, atol=1e-4)
