"""The engine's greedy answers in float32 are transformers' answers, token for token, however requests are scheduled."""

from __future__ import annotations

import pytest

GREEDY = {"temperature": 0.0, "max_tokens": 64, "ignore_eos": True}


def tokens(answers: list[dict]) -> list[list[int]]:
    return [answer["tokens"] for answer in answers]


def test_batched_and_one_by_one_without_prefix_caching(engine, prompts, expected) -> None:
    together, alone = engine(
        [{"prompts": prompts, "sampling": GREEDY}, {"prompts": prompts, "sampling": GREEDY, "one_by_one": True}],
        dtype="float32", max_num_seqs=32, enable_prefix_caching=False,
    )  # fmt: skip
    assert tokens(together) == expected
    assert tokens(alone) == expected


def test_prefix_caching_and_prompts_split_into_small_chunks(engine, prompts, expected) -> None:
    first, again = engine(
        [{"prompts": prompts, "sampling": GREEDY}] * 2,
        dtype="float32", max_num_seqs=8, max_num_batched_tokens=64, enable_prefix_caching=True,
    )  # fmt: skip
    assert tokens(first) == expected
    assert tokens(again) == expected
    assert max(answer["cached"] or 0 for answer in again) >= 512, "the second round should find its prefixes cached"


def test_few_blocks_preempt_and_resume_requests(engine, prompts, expected) -> None:
    """1,100 tokens of cache for a dozen requests: vLLM's scheduler has to preempt some and compute them again."""
    (answers,) = engine(
        [{"prompts": prompts[8:20], "sampling": GREEDY}],
        dtype="float32", max_num_seqs=12, num_gpu_blocks_override=70, enable_prefix_caching=False,
    )  # fmt: skip
    assert tokens(answers) == expected[8:20]


@pytest.mark.parametrize("dtype", ["float32"])
def test_the_answer(engine, model, dtype) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
    ((answer,),) = engine(
        [{"prompts": [list(prompt)], "sampling": {"temperature": 0.0, "max_tokens": 32}}], dtype=dtype
    )
    assert answer["text"].strip() == "The capital of France is Paris."
