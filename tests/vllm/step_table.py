"""The inputs of a step as an engine's passes ask for them, with small sizes."""

from __future__ import annotations

from typing import Any

from fxhlo.runtime.vllm.steps.inputs import StepInputs
from fxhlo.runtime.vllm.steps.options import StepOptions
from fxhlo.runtime.vllm.steps.passes import step_passes


def table(**changes: Any) -> StepInputs:
    sizes = {
        "block_size": 16,
        "max_model_len": 64,
        "max_tokens": 64,
        "max_requests": 8,
        "vocab_size": 50,
        "logprobs": 20,
    }
    options = StepOptions(**sizes | changes)
    return StepInputs.of(options, step_passes(options))
