"""Log-probabilities of a prompt's own tokens, computed by the programs that serve.

A step returns logits of one row per request. For a prompt's other rows the same step runs again with those rows selected:
it rewrites the same keys and values, recurrent states begin as they were before the step, and a mask that allows only the prompt's
next token makes the program choose that. This costs one run per `requests` tokens, and no further program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ....passes.step_inputs import RAW
from .. import compat
from ..pending import PendingStep
from ..steps.inputs import Frame
from .request import PromptLogprobs, Request
from .sampling import bits

Run = Callable[[Mapping[str, np.ndarray]], PendingStep]
"""Starts the step again with the given inputs."""


@dataclass(frozen=True)
class Part:
    """The prompt tokens of one request that a step computes: `first` is the position of the first, `row` its row."""

    request: Request
    first: int
    count: int
    row: int


def collect(
    parts: Sequence[Part], inputs: Mapping[str, np.ndarray], frame: Frame, run: Run
) -> dict[str, compat.LogprobsTensors]:
    """Adds the values of this step's rows to each request's `prompt_logprobs`; returns those of complete prompts by request id.

    inputs: of the step, as it ran.
    """
    wanted = [
        (part, index) for part in parts for index in range(min(part.count, len(part.request.prompt) - 1 - part.first))
    ]
    requests = frame.sizes["requests"]
    inputs = {
        name: values for name, values in inputs.items() if name != "grammar_mask"
    }  # grammars do not apply to prompts
    for start in range(0, len(wanted), requests):
        some = wanted[start : start + requests]
        ids, values, ranks = run({**inputs, **_changed(some, frame)}).logprobs()
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
            if len(found.ids):  # a prompt of one token has none, and vLLM cannot send empty tensors
                complete[part.request.id] = _tensors(found)
            part.request.prompt_logprobs = None
    return complete


def _tensors(found: PromptLogprobs) -> compat.LogprobsTensors:
    ids, values, ranks = map(torch.from_numpy, (found.ids, found.values, found.ranks))
    return compat.LogprobsTensors(ids, values, ranks)


def _changed(some: Sequence[tuple[Part, int]], frame: Frame) -> dict[str, np.ndarray]:
    """Inputs that replace the step's own: the prompt rows to select, each with a mask of one token."""
    rows, mask = frame.blank("logit_rows"), frame.blank("allowed_mask")
    for at, (part, index) in enumerate(some):
        rows[at] = part.row + index
        mask[at] = bits([part.request.prompt[part.first + index + 1]], mask.shape[1])
    return {
        "logit_rows": rows,
        "allowed_mask": mask,
        "temperature": frame.blank("temperature"),  # greedy
        "flags": np.array([1, 0, 0], np.int32),
        "logprobs_enabled": np.array(RAW, np.int32),
    }
