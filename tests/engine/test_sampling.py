"""Sampled requests: the same seed gives the same tokens alone and inside a batch; log-probabilities are the model's."""

from __future__ import annotations

import pytest

TOLERANCE = {"bfloat16": (0.08, 0.6), "float16": (0.01, 0.075)}
"""Mean and greatest difference of log-probabilities from transformers' in float32, over the five likeliest tokens of every position.

Logits of this model are about 20, where bfloat16 has steps of 0.125 and float16 of an eighth of that. transformers' own bfloat16
differs by 0.05 in the mean.
"""


def seeded(seed: int, **others: object) -> dict:
    return {"temperature": 0.9, "seed": seed, "max_tokens": 24, "ignore_eos": True, **others}


@pytest.mark.conformance  # test_serve.py has it through a server
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_seeded_request_is_the_same_alone_and_in_a_batch(engine, prompts, dtype) -> None:
    some = prompts[4:12]
    sampling = [
        seeded(1), seeded(2, top_k=5), seeded(3, top_p=0.8), seeded(4, top_k=20, top_p=0.9), seeded(5, min_p=0.1),
        seeded(6, presence_penalty=0.8), seeded(7, repetition_penalty=1.3), seeded(8, logit_bias={"42": 3.0}),
    ]  # fmt: skip
    together, alone, again = engine(
        [
            {"prompts": some, "sampling": sampling},
            {"prompts": some, "sampling": sampling, "one_by_one": True},
            {"prompts": some[::-1], "sampling": sampling[::-1]},
        ],
        dtype=dtype,
    )  # fmt: skip
    together, alone = ([answer["tokens"] for answer in answers] for answers in (together, alone))
    assert together == alone
    assert [answer["tokens"] for answer in again][::-1] == together
    assert len({tuple(answer) for answer in together}) == len(together)


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.conformance)])
def test_logprobs_in_low_precision_are_those_of_transformers(engine, model, prompts, dtype) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    some = prompts[1:12:2]  # up to 32 tokens: torch multiplies half precision one by one on many processors
    (answers,) = engine(
        [{"prompts": some, "sampling": {"temperature": 0.0, "max_tokens": 16, "ignore_eos": True, "logprobs": 5}}],
        dtype=dtype,
    )  # fmt: skip
    exact, rounded = (
        AutoModelForCausalLM.from_pretrained(model, dtype=one).eval() for one in (torch.float32, getattr(torch, dtype))
    )

    def logprobs(of, prompt: list[int], answer: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            return torch.log_softmax(of(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float(), -1)

    ours, theirs = [], []
    for prompt, answer in zip(some, answers, strict=True):
        right, rough = (logprobs(of, prompt, answer["tokens"]) for of in (exact, rounded))
        for position, entries in enumerate(answer["logprobs"]):
            assert len(entries) >= 5
            ours += [abs(right[position, token].item() - value) for token, value in entries]
            theirs += [abs(right[position, token] - rough[position, token]).item() for token, _ in entries]
    mean, their_mean = (sum(differences) / len(differences) for differences in (ours, theirs))
    print(
        f"difference of a log-probability: {mean:.4f} in the mean ({their_mean:.4f} of transformers), {max(ours):.4f} at most"
    )
    assert mean < TOLERANCE[dtype][0]
    assert mean < 1.25 * their_mean
    assert max(ours) < TOLERANCE[dtype][1]


def test_prompt_logprobs_are_those_of_transformers_and_parameters_shape_the_answer(
    engine, model, prompts, continued
) -> None:
    """Prompts longer than a step has rows, in chunks, beside requests that ask for nothing: whose answers stay the same."""
    import torch
    from transformers import AutoModelForCausalLM

    some = [prompts[i] for i in (0, 1, 8, 19)]
    greedy = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}
    shaping = [
        greedy,
        {**greedy, "logit_bias": {"0": -100.0}},
        {**greedy, "logit_bias": {"1234": 100.0}},
        {**greedy, "allowed_token_ids": [11, 12, 13]},
        {**greedy, "ignore_eos": False, "max_tokens": 4, "min_tokens": 4, "stop_token_ids": list(range(1000))},
    ]
    answers, (free, banned, forced, allowed, stopped) = engine(
        [
            {"prompts": some * 2, "sampling": [{**greedy, "prompt_logprobs": 2}] * 4 + [greedy] * 4},
            {"prompts": [prompts[10]] * 5, "sampling": shaping},
        ],
        dtype="float32",
    )  # fmt: skip
    assert free["tokens"] == banned["tokens"] or 0 in free["tokens"]
    assert forced["tokens"] == [1234] * 8
    assert set(allowed["tokens"]) <= {11, 12, 13}
    assert len(stopped["tokens"]) == 4
    tokens = [answer["tokens"] for answer in answers]
    assert tokens[:4] == tokens[4:] == continued(some, tokens[:4])
    assert all(answer["prompt_logprobs"] is None for answer in answers[4:])
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    for prompt, answer in zip(some, answers, strict=False):
        with torch.inference_mode():
            right = torch.log_softmax(reference(torch.tensor([prompt])).logits[0], -1)
        assert len(answer["prompt_logprobs"]) == len(prompt)
        assert answer["prompt_logprobs"][0] == []
        for position, entries in enumerate(answer["prompt_logprobs"][1:]):
            found = {token: (value, rank) for token, value, rank in entries}
            assert set(found) == {prompt[position + 1], *right[position].topk(2).indices.tolist()}
            for token, (value, rank) in found.items():
                assert abs(right[position, token].item() - value) < 1e-3
                assert rank == (right[position] >= right[position, token]).sum().item()
