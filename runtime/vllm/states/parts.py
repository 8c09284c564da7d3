"""vLLM's pool of KV blocks in parts, one for each group of devices that has the caches of its own requests (attention data parallelism).

Part p has the blocks from p S on, S of them, as the devices do (`Plan.states`): a request's blocks are all of one part, so are those of a
prefix that it shares, and vLLM's scheduler knows nothing of it. A new request goes where its longest prefix is cached, among the parts that
have room for all of it, and else where most blocks are free. Where a part is full, vLLM preempts the newest requests, of any part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ..compat.scheduling import BlockPool, FreeKVCacheBlockQueue, KVCacheBlock, KVCacheBlocks, KVCacheManager, Request


class PartedPool(BlockPool):
    """Inside `part` all that is asked is of one part; outside the free blocks are those of all, and none can be taken.

    vLLM's block for no request, number 0, is of all parts: nobody reads it.
    """

    def __init__(self, parts: int, blocks: int, **kwargs: Any) -> None:
        super().__init__(blocks, **kwargs)
        self.size = -(-blocks // parts)
        self._free = [
            FreeKVCacheBlockQueue([block for block in self.blocks[first : first + self.size] if not block.is_null])
            for first in range(0, parts * self.size, self.size)
        ]
        self._none = FreeKVCacheBlockQueue([])
        self.free_block_queue = self._none
        self._cached = [type(self.cached_block_hash_to_block)() for _ in self._free]

    @property
    def parts(self) -> range:
        return range(len(self._free))

    @contextmanager
    def part(self, number: int) -> Iterator[None]:
        """What vLLM does inside is done in this part."""
        before = self.free_block_queue, self.cached_block_hash_to_block
        self.free_block_queue, self.cached_block_hash_to_block = self._free[number], self._cached[number]
        try:
            yield
        finally:
            self.free_block_queue, self.cached_block_hash_to_block = before

    def free_in(self, part: int) -> int:
        """How many blocks of a part are free."""
        return self._free[part].num_free_blocks

    def get_num_free_blocks(self) -> int:
        if self.free_block_queue is self._none:
            return sum(queue.num_free_blocks for queue in self._free)
        return self.free_block_queue.num_free_blocks

    def free_blocks(self, ordered_blocks: Iterable[KVCacheBlock]) -> None:
        by_part: dict[int, list[KVCacheBlock]] = {}
        for block in ordered_blocks:
            by_part.setdefault(block.block_id // self.size, []).append(block)
        for number, blocks in by_part.items():
            with self.part(number):
                super().free_blocks(blocks)

    def evict_blocks(self, block_ids: set[int]) -> None:
        for number in self.parts:
            with self.part(number):
                super().evict_blocks({one for one in block_ids if one // self.size == number})

    def reset_prefix_cache(self) -> bool:
        done = super().reset_prefix_cache()
        if done:
            self._cached = [type(self.cached_block_hash_to_block)() for _ in self._free]
        return done


class PartedCaches(KVCacheManager):
    """vLLM's cache manager, over a pool in parts. parts: their number."""

    def __init__(self, parts: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        old = self.block_pool
        self._pool = PartedPool(
            parts,
            old.num_gpu_blocks,
            enable_caching=old.enable_caching,
            hash_block_size=old.hash_block_size,
            enable_kv_cache_events=old.enable_kv_cache_events,
            metrics_collector=old.metrics_collector,
        )
        self.block_pool = self.coordinator.block_pool = self._pool
        for manager in self.coordinator.single_type_managers:
            if manager.block_pool is old:
                manager.block_pool, manager._null_block = self._pool, self._pool.null_block
        self._part_of: dict[str, int] = {}

    def get_computed_blocks(self, request: Request) -> tuple[KVCacheBlocks, int, int]:
        """Of a request that has no blocks yet: the part for it is chosen here."""
        found = {}
        for number in self._pool.parts:
            with self._pool.part(number):
                found[number] = super().get_computed_blocks(request)
        chosen = max(found, key=lambda number: self._worth(request, number, found[number][1]))
        self._part_of[request.request_id] = chosen
        return found[chosen]

    def allocate_slots(self, request: Request, *args: Any, **kwargs: Any) -> KVCacheBlocks | None:
        number = self._part_of.get(request.request_id)
        if number is None:
            number = max(self._pool.parts, key=self._pool.free_in)
            self._part_of[request.request_id] = number
        with self._pool.part(number):
            return super().allocate_slots(request, *args, **kwargs)

    def cache_blocks(self, request: Request, num_computed_tokens: int) -> None:
        if (number := self._part_of.get(request.request_id)) is not None:
            with self._pool.part(number):
                super().cache_blocks(request, num_computed_tokens)

    def free(self, request: Request) -> None:
        super().free(request)
        self._part_of.pop(request.request_id, None)

    def pop_blocks_for_free(self, request: Request) -> list[KVCacheBlock]:
        self._part_of.pop(request.request_id, None)
        return super().pop_blocks_for_free(request)

    def _worth(self, request: Request, part: int, cached: int) -> tuple[bool, int, int]:
        """What speaks for a part, most important first: room for the prompt, the tokens that it has of it, free blocks."""
        free, smallest = self._pool.free_in(part), self.coordinator.single_type_managers[0].block_size
        needed = -(-(request.num_tokens - cached) // smallest) * self.num_kv_cache_groups
        return needed <= free, cached, free
