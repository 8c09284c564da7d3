"""vLLM's schedulers, and the cache manager that they make."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from unittest import mock

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue, KVCacheBlock
from vllm.v1.core.sched import scheduler
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

__all__ = [
    "AsyncScheduler",
    "BlockPool",
    "FreeKVCacheBlockQueue",
    "KVCacheBlock",
    "KVCacheBlocks",
    "KVCacheManager",
    "Request",
    "Scheduler",
    "with_cache_manager",
]


def with_cache_manager(make: Callable[..., KVCacheManager]) -> AbstractContextManager[object]:
    """A scheduler that is made inside has the cache manager that `make` gives."""
    return mock.patch.object(scheduler, "KVCacheManager", make)
