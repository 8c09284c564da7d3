"""What the shapes of a step depend on besides the sizes of a program, read from vLLM's config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig


@dataclass(frozen=True)
class StepOptions:
    """What the step's shapes depend on besides the buckets. block_size in tokens; lengths in tokens."""

    block_size: int
    max_model_len: int
    max_tokens: int
    max_requests: int
    logprobs: int
    bias: int = 1024
    logprobs_mode: str = "raw_logprobs"

    @property
    def pages(self) -> int:
        """Length of a request's block table."""
        return -(-self.max_model_len // self.block_size)

    @classmethod
    def of(cls, config: VllmConfig) -> StepOptions:
        return cls(
            block_size=config.cache_config.block_size,
            max_model_len=config.model_config.max_model_len,
            max_tokens=config.scheduler_config.max_num_batched_tokens,
            max_requests=config.scheduler_config.max_num_seqs,
            logprobs=_logprobs(config.model_config),
            logprobs_mode=config.model_config.logprobs_mode,
        )


def _logprobs(model_config: ModelConfig) -> int:
    """Columns of log-probabilities: at least one, at most the vocabulary, which is also what vLLM's -1 stands for."""
    vocabulary, most = model_config.get_vocab_size(), model_config.max_logprobs
    return vocabulary if most == -1 else min(max(1, most), vocabulary)
