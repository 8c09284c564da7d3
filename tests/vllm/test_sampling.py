"""SamplingParams and what was produced so far, as the arrays that a step takes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from fxhlo.runtime.vllm.batch.request import Request
from fxhlo.runtime.vllm.batch.sampling import Sampling, bits
from fxhlo.runtime.vllm.steps.kinds import Bucket

sys.path.insert(0, str(Path(__file__).parent))
from step_table import table

VOCABULARY = 70


def step(*params: SamplingParams, outputs=((), ()), grammar=None, seeds=(5, 6), size: int = 3) -> dict[str, np.ndarray]:
    sampling = Sampling(capacity=4, vocab_size=VOCABULARY)
    requests = []
    for row, one in enumerate(params):
        requests.append(Request(f"r{row}", one, [3, 4, 3], list(outputs[row]), [[]], 0, seeds[row]))
        sampling.place(row, requests[row])
    frame = table(vocab_size=VOCABULARY, max_model_len=8).frame(Bucket.of(tokens=size, requests=size))
    return sampling.inputs(np.arange(len(params)), requests, frame, grammar or {})


def allowed(mask: np.ndarray) -> set[int]:
    return {token for token in range(VOCABULARY) if mask[token // 32] >> (token % 32) & 1}


ALL = set(range(VOCABULARY))


def test_numbers_are_padded_with_what_does_nothing() -> None:
    found = step(SamplingParams(temperature=0.5, top_k=-1, top_p=0.25, min_p=0.125), SamplingParams(temperature=0))
    assert found["temperature"].tolist() == [0.5, 0, 0]
    assert found["top_k"].tolist() == [0, 0, 0]
    assert found["top_p"].tolist() == [0.25, 1, 1]
    assert found["min_p"].tolist() == [0.125, 0, 0]
    assert found["repetition_penalty"].tolist() == [1, 1, 1]
    assert found["flags"].tolist() == [0, 0, 0]
    assert not {"allowed_mask", "bias_ids", "bias_values", "seen_ids", "seen_counts"} & set(found)
    for name, value in found.items():
        assert value.dtype in (np.int32, np.float32), name


def test_seeds_keep_their_64_bits_and_steps_count_outputs() -> None:
    found = step(SamplingParams(), SamplingParams(), outputs=((9, 9), ()), seeds=(0xFEDCBA9876543210, 7))
    assert found["seeds"].view(np.uint32).tolist() == [[0x76543210, 0xFEDCBA98], [7, 0], [0, 0]]
    assert found["steps"].tolist() == [2, 0, 0]


def test_allowed_token_ids() -> None:
    found = step(SamplingParams(allowed_token_ids=[0, 31, 32, 69]), SamplingParams())
    assert found["flags"].tolist() == [1, 0, 0]
    assert allowed(found["allowed_mask"][0]) == {0, 31, 32, 69}
    assert allowed(found["allowed_mask"][1]) == ALL


def test_min_tokens_forbids_what_would_stop() -> None:
    params = SamplingParams(min_tokens=2, stop_token_ids=[5])
    params.update_from_generation_config({}, eos_token_id=1)
    assert allowed(step(params, outputs=((7,),))["allowed_mask"][0]) == ALL - {1, 5}
    assert allowed(step(params, outputs=((7, 7),))["allowed_mask"][0]) == ALL


def test_a_grammar_that_allows_nothing_but_to_stop_wins_over_min_tokens() -> None:
    params = SamplingParams(min_tokens=9, stop_token_ids=[5], structured_outputs=StructuredOutputsParams(choice=["a"]))
    only_stop, more = bits([5], 3), bits([5, 64], 3)
    assert allowed(step(params, grammar={"r0": only_stop})["allowed_mask"][0]) == {5}
    assert allowed(step(params, grammar={"r0": more})["allowed_mask"][0]) == {64}
    past_the_end = only_stop.copy()
    past_the_end[2] |= np.int32(1 << 20)  # a bit for token 84 of 70
    assert 5 in allowed(step(params, grammar={"r0": past_the_end})["allowed_mask"][0])


def test_bad_words_forbid_the_token_that_would_complete_one() -> None:
    params = SamplingParams()
    params._bad_words_token_ids = [[7], [8, 9], [1, 2, 3]]
    for output, forbidden in {(8,): {7, 9}, (1, 2): {7, 3}, (): {7}}.items():
        assert allowed(step(params, outputs=(output,))["allowed_mask"][0]) == ALL - forbidden


def test_bias_and_penalties() -> None:
    found = step(
        SamplingParams(logit_bias={5: 1.5, 6: -100.0}),
        SamplingParams(presence_penalty=0.5, frequency_penalty=0.25, repetition_penalty=1.25),
        outputs=((), (9, 3, 9)),
    )
    assert found["flags"].tolist() == [0, 1, 1]
    assert found["bias_ids"].shape == (3, 1024)
    assert found["bias_ids"][0, :3].tolist() == [5, 6, -1]
    assert found["bias_values"][0, :3].tolist() == [1.5, -100, 0]
    assert (found["bias_ids"][1:] == -1).all()
    assert found["seen_ids"].shape == (3, 8)
    seen = dict(zip(found["seen_ids"][1].tolist(), found["seen_counts"][1].tolist(), strict=True))
    assert seen == {3: 1, 4: 0, 9: 2, -1: 0}
    assert (found["seen_ids"][0] == -1).all()
    assert found["presence_penalty"].tolist() == [0, 0.5, 0]


@pytest.mark.parametrize(("count", "enabled"), [(None, 0), (0, 1), (5, 1), (-1, 1)])
def test_logprobs_are_enabled_where_a_request_asks(count, enabled) -> None:
    assert step(SamplingParams(logprobs=count), SamplingParams())["logprobs_enabled"] == enabled
