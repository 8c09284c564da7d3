"""Request: the runner's state of one request: parameters, tokens, KV blocks, and log-probabilities that are due."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from vllm import SamplingParams


@dataclass
class PromptLogprobs:
    """Log-probabilities of one prompt as far as computed: ids [N, n + 1], values and ranks of N = len(prompt) - 1 tokens."""

    ids: np.ndarray
    values: np.ndarray
    ranks: np.ndarray

    @classmethod
    def of(cls, prompt_length: int, count: int) -> PromptLogprobs:
        """Allocates the arrays. count: the number of most probable tokens besides the prompt's own."""
        shape = (prompt_length - 1, count + 1)
        return cls(np.zeros(shape, np.int32), np.zeros(shape, np.float32), np.zeros(shape[0], np.int32))


@dataclass
class Request:
    """prompt: token ids; output: those sampled so far, in which the last `unknown` are not on the host yet; blocks: its KV blocks in order, for each
    of vLLM's cache groups; computed: tokens in the cache."""

    id: str
    params: SamplingParams
    prompt: list[int]
    output: list[int]
    blocks: list[list[int]]
    computed: int
    seed: int
    unknown: int = 0
    seen: dict[int, int] = field(default_factory=dict)
    """Token id -> occurrences in the output, of prompt and output; kept for requests with penalties only."""
    prompt_logprobs: PromptLogprobs | None = None
    """Requested and not yet returned."""

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.output)
