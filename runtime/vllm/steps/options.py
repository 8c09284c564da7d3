"""StepOptions: the sizes from vLLM's config on which a step's shapes depend, besides a program's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ....passes.cache_groups import CacheGroup, page_sizes
from ....passes.fx.sample import Mode
from ..parallel import devices_of
from ..refusals import MAX_BIAS
from .kinds import Limits

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

    from ...core.targets import Target


NO_LIMITS = Limits(0, 0)


@dataclass(frozen=True)
class StepOptions:
    """block_size, max_model_len and max_tokens in tokens; logprobs: columns besides the chosen token's; bias: entries.
    groups: the cache groups, where there are several; with one, block_size is that of all layers. pooling: steps return hidden
    states instead of tokens."""

    block_size: int
    max_model_len: int
    max_tokens: int
    max_requests: int
    vocab_size: int
    logprobs: int
    bias: int = MAX_BIAS
    logprobs_mode: Mode = "raw_logprobs"
    groups: tuple[CacheGroup, ...] = ()
    state_dtypes: tuple[tuple[str, str], ...] = ()
    """Of the states that have a row per request, by name."""
    cached_states: bool = False
    """Whether the states of prefixes are cached: more rows than requests, and a program that copies one."""
    pooling: bool = False
    feed: bool = False
    """Whether a step takes the tokens of the one before from the device (asynchronous scheduling)."""
    packed: bool = False
    """Whether a step takes its small inputs in two arrays."""
    skips: bool = False
    """Whether products leave out the rows of a program that a step does not fill: native kernels on one device do."""
    limits: Limits = NO_LIMITS
    """The steps that the scheduler can ask for; of options made by hand, all up to max_tokens and max_requests."""

    def __post_init__(self) -> None:
        if self.limits is NO_LIMITS:
            object.__setattr__(self, "limits", Limits(self.max_tokens, self.max_requests, pooling=self.pooling))

    @property
    def pages(self) -> int:
        """Length of a request's block table."""
        return -(-self.max_model_len // self.block_size)

    @property
    def slots(self) -> int:
        """The fewest rows of a state that has one per request: one for each, and row 0 for none."""
        return self.max_requests + 1

    @property
    def page_sizes(self) -> dict[str, int]:
        """The length of a block table of each group, by its symbol in the shapes of a step's inputs."""
        return page_sizes(self.groups) if self.groups else {"pages": self.pages}

    @classmethod
    def of(cls, config: VllmConfig, groups: tuple[CacheGroup, ...] = ()) -> StepOptions:
        """Reads the options from vLLM's final config, and the dtypes of states from the layers of the model built last.

        groups: those that vLLM made of the model's layers.
        """
        from ..layers.catalog import slot_dtypes

        return cls(
            block_size=groups[0].block_size if groups else config.cache_config.block_size,
            max_model_len=config.model_config.max_model_len,
            max_tokens=config.scheduler_config.max_num_batched_tokens,
            max_requests=config.scheduler_config.max_num_seqs,
            vocab_size=config.model_config.get_vocab_size(),
            logprobs=_logprobs(config.model_config),
            logprobs_mode=config.model_config.logprobs_mode,
            groups=groups if len(groups) > 1 else (),
            state_dtypes=(dtypes := slot_dtypes(config)),
            cached_states=bool(dtypes) and config.cache_config.mamba_cache_mode == "align",
            pooling=config.model_config.runner_type == "pooling",
            limits=limits_of(config),
        )

    @classmethod
    def of_engine(cls, config: VllmConfig, groups: tuple[CacheGroup, ...], target: Target) -> StepOptions:
        """The options of an engine's programs, which also depend on how vLLM schedules and on how inputs reach the device best."""
        options = cls.of(config, groups)
        feed = config.scheduler_config.async_scheduling is True and not options.pooling
        skips = target.family == "cpu" and devices_of(config) == 1
        return replace(options, feed=feed, packed=target.family in PACKED, skips=skips)


PACKED = ("cpu", "tpu", "cuda")
"""Families of targets on which few transfers of inputs cost less than taking the inputs apart on the device."""


def limits_of(config: VllmConfig) -> Limits:
    """The steps that vLLM's scheduler can ask for with this config.

    A prompt has less than max_model_len tokens where the model generates, and no more where it pools; requests that were preempted come back
    with their answer so far, and end before they have more.
    """
    pooling = config.model_config.runner_type == "pooling"
    scheduler = config.scheduler_config
    tokens = scheduler.max_num_batched_tokens
    active = scheduler.max_num_active_seqs
    return Limits(
        tokens=min(tokens, scheduler.max_num_scheduled_tokens or tokens),
        requests=min(scheduler.max_num_seqs, active or scheduler.max_num_seqs),
        longest=max(1, config.model_config.max_model_len - (not pooling)),
        threshold=scheduler.long_prefill_token_threshold,
        shared=tokens if scheduler.long_prefill_token_threshold_adaptive else 0,
        pooling=pooling,
    )


def _logprobs(model_config: ModelConfig) -> int:
    """Number of columns of log-probabilities, from 1 to the vocabulary's size, which vLLM's -1 means."""
    vocabulary, most = model_config.get_vocab_size(), model_config.max_logprobs
    return vocabulary if most == -1 else min(max(1, most), vocabulary)
