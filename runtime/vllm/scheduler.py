"""vLLM's schedulers where groups of devices have the KV caches of other requests (attention data parallelism): they are vLLM's own, and give
a request blocks of one group (states/parts.py). vLLM takes them by their names, `SchedulerConfig.scheduler_cls`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from .compat.scheduling import AsyncScheduler, Scheduler, with_cache_manager
from .parallel import requests_of
from .states.parts import PartedCaches

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class PartedScheduler(Scheduler):
    """Schedules as vLLM's; its cache manager has a part for each group of devices."""

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        with with_cache_manager(partial(PartedCaches, requests_of(vllm_config))):
            super().__init__(vllm_config, *args, **kwargs)


class PartedAsyncScheduler(PartedScheduler, AsyncScheduler):
    """The same, a step ahead."""
