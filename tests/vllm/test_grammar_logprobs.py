"""Log-probabilities under structured outputs: the step's, in eager torch, beside vLLM's own Sampler on the logits that
vLLM's apply_grammar_bitmask has masked, in every mode of logprobs_mode."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm import SamplingParams
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler
from vllm.v1.structured_output.utils import apply_grammar_bitmask

from fxhlo.passes.fx.sample import Sample
from fxhlo.passes.pipeline import run
from fxhlo.passes.step_inputs import mask_words
from fxhlo.runtime.vllm.batch.request import Request
from fxhlo.runtime.vllm.batch.sampling import Sampling
from fxhlo.runtime.vllm.steps.kinds import Bucket

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "passes"))
from step_decoder import VOCABULARY, captured, run_eager
from step_table import table

COUNT = 5
MODES = ("raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits")
PARAMS = [
    SamplingParams(temperature=0, logprobs=COUNT),
    SamplingParams(temperature=0, logprobs=COUNT),
    SamplingParams(temperature=0, logprobs=COUNT, allowed_token_ids=list(range(10, 40))),
]


def grammar(logits: torch.Tensor) -> dict[str, np.ndarray]:
    """Of the first and the last request: the likeliest token and most others are forbidden."""
    rng = np.random.default_rng(0)
    masks = {f"r{row}": rng.integers(-(2**31), 2**31, mask_words(VOCABULARY), np.int32) for row in (0, 2)}
    for row in (0, 2):
        best = int(logits[row].argmax())
        masks[f"r{row}"][best // 32] &= ~np.int32(1 << best % 32)
        masks[f"r{row}"][0] |= 1 << 20  # one that is allowed everywhere
    return masks


def by_vllm(logits: torch.Tensor, masks: dict[str, np.ndarray], mode: Any) -> tuple[torch.Tensor, LogprobsTensors]:
    scheduled = SimpleNamespace(scheduled_spec_decode_tokens={})
    output = SimpleNamespace(structured_output_request_ids=list(masks), grammar_bitmask=np.stack(list(masks.values())))
    logits = logits.clone()
    apply_grammar_bitmask(scheduled, output, SimpleNamespace(req_ids=["r0", "r1", "r2"]), logits)  # type: ignore[arg-type]
    forbidden = torch.zeros(logits.shape, dtype=torch.bool)
    forbidden[2] = True
    forbidden[2, 10:40] = False
    metadata = SamplingMetadata(
        temperature=None, all_greedy=True, all_random=False, top_p=None, top_k=None, generators={},
        max_num_logprobs=COUNT, no_penalties=True, prompt_token_ids=None, frequency_penalties=torch.zeros(3),
        presence_penalties=torch.zeros(3), repetition_penalties=torch.ones(3), output_token_ids=[[], [], []],
        allowed_token_ids_mask=forbidden, bad_words_token_ids={}, logitsprocs=LogitsProcessors(),
    )  # fmt: skip
    found = Sampler(logprobs_mode=mode)(logits, metadata)
    return found.sampled_token_ids[:, 0], found.logprobs_tensors


@pytest.mark.parametrize("mode", MODES)
def test_they_are_those_of_vllms_sampler(mode: str) -> None:
    _, program = captured()
    model = {
        "input_ids": torch.arange(3, 14, dtype=torch.int32),
        "positions": torch.arange(11, dtype=torch.int32),
        "logit_rows": torch.tensor([2, 6, 10], dtype=torch.int32),
    }
    logits = run_eager(program, model)["logits"]
    masks = grammar(logits)
    sampling = Sampling(3, VOCABULARY)
    requests = [Request(f"r{row}", params, [1], [], [[]], 0, 0) for row, params in enumerate(PARAMS)]
    for row, request in enumerate(requests):
        sampling.place(row, request)
    frame = table(vocab_size=VOCABULARY).frame(Bucket.of(tokens=11, requests=3))
    given = {**frame.wide(), **sampling.inputs(np.arange(3), requests, frame, masks)}
    after = run([Sample(logprobs=COUNT, seen=64, mode=mode)], program)
    found = run_eager(after, {**model, **{name: torch.from_numpy(value) for name, value in given.items()}})

    tokens, expected = by_vllm(logits, masks, mode)
    assert found["tokens"].tolist() == tokens.tolist()
    assert found["logprob_ranks"].tolist() == expected.selected_token_ranks.tolist()
    torch.testing.assert_close(found["logprob_values"], expected.logprobs.float(), rtol=1e-5, atol=1e-5)
    seen = torch.isfinite(expected.logprobs)  # the order of what is impossible says nothing
    assert torch.equal(found["logprob_ids"][seen], expected.logprob_token_ids[seen])
