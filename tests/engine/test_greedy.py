"""The engine's greedy answers in float32 are transformers' answers, token for token, however requests are scheduled."""

from __future__ import annotations

import pytest

GREEDY = {"temperature": 0.0, "max_tokens": 64, "ignore_eos": True}


def tokens(answers: list[dict]) -> list[list[int]]:
    found = [answer["tokens"] for answer in answers]
    assert all(len(answer) == GREEDY["max_tokens"] for answer in found)
    return found


@pytest.mark.conformance
def test_batched_and_one_by_one_without_prefix_caching(engine, prompts, continued) -> None:
    prompts = prompts[::2]
    together, alone = engine(
        [{"prompts": prompts, "sampling": GREEDY}, {"prompts": prompts[::6], "sampling": GREEDY, "one_by_one": True}],
        dtype="float32", max_num_seqs=32, max_num_batched_tokens=1024, enable_prefix_caching=False,
    )  # fmt: skip
    assert tokens(together) == continued(prompts, tokens(together))
    assert tokens(alone) == tokens(together)[::6]


def test_batched_and_one_by_one_with_prefix_caching_and_prompts_in_small_chunks(engine, prompts, continued) -> None:
    prompts = prompts[1::3]
    first, again, alone = engine(
        [{"prompts": prompts, "sampling": GREEDY}] * 2 + [{"prompts": prompts[::4], "sampling": GREEDY, "one_by_one": True}],
        dtype="float32", enable_prefix_caching=True, apart=True,
    )  # fmt: skip
    assert tokens(first) == continued(prompts, tokens(first))
    assert tokens(again) == tokens(first)
    assert tokens(alone) == tokens(first)[::4]
    assert max(answer["cached"] or 0 for answer in again) >= 512, "the second round should find its prefixes cached"


@pytest.mark.conformance
def test_few_blocks_preempt_and_resume_requests(engine, prompts, continued) -> None:
    """1,100 tokens of cache for a dozen requests: vLLM's scheduler has to preempt some and compute them again."""
    (answers,) = engine(
        [{"prompts": prompts[8:20], "sampling": GREEDY}],
        dtype="float32", max_num_seqs=12, num_gpu_blocks_override=70, enable_prefix_caching=False,
    )  # fmt: skip
    assert tokens(answers) == continued(prompts[8:20], tokens(answers))


@pytest.mark.conformance
def test_generate_gives_the_same_answers(engine, model, prompts) -> None:
    """All prompts one by one, without the shortcut of `continued`: transformers makes its own answers, token by token."""
    import torch
    from transformers import AutoModelForCausalLM

    (answers,) = engine(
        [{"prompts": prompts, "sampling": GREEDY, "one_by_one": True}],
        dtype="float32", max_num_seqs=32, enable_prefix_caching=False,
    )  # fmt: skip
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    for prompt, answer in zip(prompts, tokens(answers), strict=True):
        with torch.inference_mode():
            output = reference.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=64,
                min_new_tokens=64, do_sample=False, pad_token_id=0, eos_token_id=None,
            )  # fmt: skip
        assert answer == output[0, len(prompt) :].tolist()


@pytest.mark.conformance
def test_the_answer(engine, model) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
    ((answer,),) = engine(
        [{"prompts": [list(prompt)], "sampling": {"temperature": 0.0, "max_tokens": 32}}],
        dtype="float32",
    )
    assert answer["text"].strip() == "The capital of France is Paris."
