"""Log-probabilities of a prompt's own tokens, from the programs that are there.

A step gives logits of one row per request. For a prompt's other rows the same step runs again, with its rows in place
of the requests': keys and values are written once more as they were, and a mask that allows the prompt's next token alone
makes the program choose it. That costs a run for every `requests` tokens, and no program of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ....passes.fx.sample import RAW
from .. import compat
from ..steps.kinds import Bucket, StepResult
from .request import PromptLogprobs, Request
from .sampling import bits

Run = Callable[[Mapping[str, np.ndarray]], StepResult]
"""Runs a step with these inputs, log-probabilities on."""


@dataclass(frozen=True)
class Part:
    """The prompt tokens of one request that a step computes: `first` is the position of the first, `row` its row."""

    request: Request
    first: int
    count: int
    row: int


def collect(
    parts: Sequence[Part], inputs: Mapping[str, np.ndarray], bucket: Bucket, vocab_size: int, run: Run
) -> dict[str, compat.LogprobsTensors]:
    """Adds what this step's rows say to each request's `prompt_logprobs`; gives those of prompts that are complete.

    inputs: the step's, as they were when it ran.
    """
    wanted = [
        (part, index) for part in parts for index in range(min(part.count, len(part.request.prompt) - 1 - part.first))
    ]
    for start in range(0, len(wanted), bucket.requests):
        some = wanted[start : start + bucket.requests]
        result = run(_inputs(some, inputs, bucket, vocab_size))
        assert result.logprobs is not None
        ids, values, ranks = result.logprobs
        for row, (part, index) in enumerate(some):
            found = part.request.prompt_logprobs
            assert found is not None
            position, width = part.first + index, found.ids.shape[1]
            found.ids[position], found.values[position] = ids[row, :width], values[row, :width]
            found.ranks[position] = ranks[row]
    complete = {}
    for part in parts:
        found = part.request.prompt_logprobs
        if found is not None and part.first + part.count >= len(part.request.prompt):
            if len(found.ids):  # a prompt of one token has none, and vLLM cannot send tensors without elements
                complete[part.request.id] = _tensors(found)
            part.request.prompt_logprobs = None
    return complete


def _tensors(found: PromptLogprobs) -> compat.LogprobsTensors:
    ids, values, ranks = map(torch.from_numpy, (found.ids, found.values, found.ranks))
    return compat.LogprobsTensors(ids, values, ranks)


def _inputs(
    some: Sequence[tuple[Part, int]], inputs: Mapping[str, np.ndarray], bucket: Bucket, vocab_size: int
) -> dict[str, np.ndarray]:
    """The step's inputs with rows of prompts to choose for, each with one token to choose."""
    words = -(-vocab_size // 32)
    rows = np.zeros(bucket.requests, np.int32)
    mask = np.full((bucket.requests, words), -1, np.int32)
    for at, (part, index) in enumerate(some):
        rows[at] = part.row + index
        mask[at] = bits([part.request.prompt[part.first + index + 1]], words)
    made = {**inputs, "logit_rows": rows, "allowed_mask": mask}
    made["temperature"] = np.zeros_like(inputs["temperature"])
    made["flags"] = np.array([1, 0, 0], np.int32)
    made["logprobs_enabled"] = np.array(RAW, np.int32)
    return made
