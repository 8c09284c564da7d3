"""Asynchronous scheduling changes no answer: two engines of a small model, one step at a time and one step ahead.

Every request of parameters.py, and seeded ones, among too few KV blocks for all of them, so that some are preempted.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from generate import answer, parameters
from parameters import COMPARED, GREEDY, RANDOM

SIZES = {
    "dtype": "float32", "max_model_len": 192, "max_num_seqs": 4, "max_num_batched_tokens": 32, "num_gpu_blocks_override": 14,
    "logprobs_mode": "processed_logprobs", "max_logprobs": 40, "seed": 0, "disable_log_stats": False,
}  # fmt: skip
SEEDED = [{**RANDOM, "seed": seed, "n": 2, "max_tokens": 40, "logprobs": 1} for seed in range(4)]
SHORT = [{**GREEDY, "max_tokens": count} for count in (1, 2, 3)]
REQUESTS = (
    [request for cases in COMPARED.values() for request in cases.values() if request["max_tokens"]] + SEEDED + SHORT
)


@pytest.fixture(scope="module")
def small(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random layers with the real model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("small")
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=49152,
        max_position_embeddings=256, initializer_range=0.3, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, folder)
    return folder


def served(folder: Path, ahead: bool) -> Iterator[Any]:
    from vllm import LLM

    llm = LLM(str(folder), async_scheduling=ahead, **SIZES)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def same(one: Any, other: Any) -> bool:
    """Whether two answers are equal, log-probabilities to four digits: steps of other sizes run in other programs."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == pytest.approx(other, abs=1e-4) if isinstance(one, float) else one == other


@pytest.fixture(scope="module")
def answers(small: Path, prompts: list[list[int]]) -> dict[bool, Any]:
    """Whether a step was ahead -> the answers of two runs, and of requests beside which others were aborted."""
    found: dict[bool, Any] = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        for ahead in (False, True):
            for llm in served(small, ahead):
                core = llm.llm_engine.engine_core.engine_core
                assert (core.batch_queue is not None) == ahead
                some = [prompts[3 + index % 14][-100:] for index in range(len(REQUESTS))]
                runs = [
                    [answer(one) for one in generated(llm, some, REQUESTS)],
                    [answer(one) for one in generated(llm, some[::-1], REQUESTS[::-1])][::-1],
                ]
                preempted = {one.name: getattr(one, "value", 0) for one in llm.get_metrics()}["vllm:num_preemptions"]
                found[ahead] = runs, preempted, aborted(llm, some[:8])
    return found


def generated(llm: Any, prompts: list[list[int]], requests: list[dict[str, Any]]) -> list[Any]:
    given: Any = [{"prompt_token_ids": prompt} for prompt in prompts]
    return llm.generate(given, [parameters(request) for request in requests], use_tqdm=False)


def aborted(llm: Any, prompts: list[list[int]]) -> dict[str, list[int]]:
    """Tokens of the requests that were left when every other one was aborted while its step ran."""
    engine = llm.llm_engine
    for index, prompt in enumerate(prompts):
        engine.add_request(str(index), {"prompt_token_ids": prompt}, parameters({**GREEDY, "max_tokens": 30}))
    finished, steps = {}, 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished and output.outputs[0].finish_reason != "abort":
                finished[output.request_id] = list(output.outputs[0].token_ids)
        steps += 1
        if steps % 5 == 0 and steps <= 20:
            engine.abort_request([str(2 * (steps // 5) - 2)])
    return finished


@pytest.mark.parametrize("again", [False, True], ids=["first", "in another order"])
def test_every_answer_is_the_same(answers: dict[bool, Any], again: bool) -> None:
    right, found = (answers[ahead][0][again] for ahead in (False, True))
    for request, one, other in zip(REQUESTS, right, found, strict=True):
        for name in set(one) - {"cached"}:
            assert same(other[name], one[name]), (request, name, other[name], one[name])


def test_some_requests_were_preempted(answers: dict[bool, Any]) -> None:
    assert all(answers[ahead][1] > 0 for ahead in (False, True))


def test_aborted_requests_leave_the_others_alone(answers: dict[bool, Any]) -> None:
    right, found = (answers[ahead][2] for ahead in (False, True))
    assert found == right
    assert set("1357") <= set(found)
