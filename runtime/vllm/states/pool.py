"""vLLM's cache manager for states in rows of their own (`mamba_cache_mode` "align"), beside the pool of KV blocks.

vLLM's own puts a state into a block of that one pool, and makes an attention layer's pages as large as a state. Here the manager has a pool of
its own, as those of vLLM's caches in the host's memory do, and its blocks are the rows of the states: a block's number is the row. vLLM takes
both classes by its registry of specs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ...core.errors import UnsupportedError
from .. import compat
from .rows import StateRows

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_utils import KVCacheBlock


@dataclass(frozen=True, kw_only=True)
class StateRowsSpec(compat.MambaSpec):
    """One of the layers by which vLLM is told of the states. Its shape is a page of the KV cache, of whose pool the states take nothing."""

    rows: StateRows
    keeps_all: bool
    """Whether states are kept at other places than the end of a prompt: whether they are is not known when a step is scheduled."""

    def max_memory_usage_bytes(self, vllm_config: compat.VllmConfig) -> int:
        """0: of the pool of KV blocks."""
        return 0


class StateRowsManager(compat.MambaManager):
    """Gives a request a row where its state passes the end of a block of tokens, and finds the row at the end of a prefix."""

    def __init__(self, kv_cache_spec: StateRowsSpec, block_pool: compat.BlockPool, **kwargs: Any) -> None:
        self._blocks = block_pool.num_gpu_blocks
        self._keeps_all = kv_cache_spec.keeps_all
        rows = compat.BlockPool(
            kv_cache_spec.rows.of(self._blocks),
            enable_caching=block_pool.enable_caching,
            hash_block_size=block_pool.hash_block_size,
        )
        super().__init__(kv_cache_spec, rows, **kwargs)

    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        num_tokens: int,
        new_computed_blocks: Sequence[KVCacheBlock],
        total_computed_tokens: int,
        num_local_computed_tokens: int,
        num_tokens_main_model: int,
        apply_admission_cap: bool = False,
        prefill_end: int = 0,
    ) -> int:
        """Of the pool of KV blocks: none; where too few rows are free, more than there are, which has vLLM wait."""
        needed = super().get_num_blocks_to_allocate(
            request_id,
            num_tokens,
            new_computed_blocks,
            total_computed_tokens,
            num_local_computed_tokens,
            num_tokens_main_model,
            apply_admission_cap,
            prefill_end,
        )
        free = self.block_pool.get_num_free_blocks()
        return 0 if needed <= free or self._stays(request_id, num_tokens_main_model) else self._blocks + 1

    def allocate_new_blocks(self, request_id: str, num_tokens: int, num_tokens_main_model: int) -> list[KVCacheBlock]:
        """The rows of the blocks up to the last one of these tokens: a new row, or the same one where nobody wants the state that it has."""
        if not self._stays(request_id, num_tokens_main_model):
            return super().allocate_new_blocks(request_id, num_tokens, num_tokens_main_model)
        blocks = self.req_to_blocks[request_id]
        before, needed, row = len(blocks), -(-num_tokens_main_model // self.block_size), blocks[-1]
        blocks[-1] = self._null_block
        blocks.extend([self._null_block] * (needed - before - 1))
        blocks.append(row)
        return blocks[before:]

    def _stays(self, request_id: str, num_tokens: int) -> bool:
        """Whether a request that goes on to this number of tokens passes the end of a block at which vLLM keeps no state, so that it needs no copy."""
        blocks = self.req_to_blocks.get(request_id)
        return (
            not self._keeps_all
            and request_id in self._allocated_block_reqs
            and blocks is not None
            and len(blocks) > 0
            and num_tokens > len(blocks) * self.block_size
            and self.block_pool.is_block_writable(blocks[-1])
        )


def register() -> None:
    """Tells vLLM which manager has `StateRowsSpec`; called where vLLM registers its own."""
    compat.KVCacheSpecRegistry.register(StateRowsSpec, StateRowsManager, uniform_type_base_spec=StateRowsSpec)


def specs_of_rows(
    rows: StateRows, groups: Sequence[compat.KVCacheGroupSpec], config: compat.VllmConfig
) -> dict[str, compat.KVCacheSpec]:
    """What vLLM's cache manager is told of the states, by made-up names. groups: of the KV blocks beside them, if any.

    As many layers as a group of attention has, each of a page of its size, so that vLLM makes one group of them and leaves the others as
    they are. Raises UnsupportedError for pages of several sizes, or blocks of several lengths.
    """
    block_size = config.cache_config.block_size
    one: dict[str, Any] = {"block_size": block_size, "mamba_cache_mode": "align", "dtypes": (torch.uint8,)}
    if not groups:
        return {"states": compat.MambaSpec(shapes=((rows.row,),), **one)}
    pages = {spec.page_size_bytes for group in groups for spec in _specs(group)}
    if len(pages) > 1 or {group.kv_cache_spec.block_size for group in groups} != {block_size}:
        raise UnsupportedError(
            "fxhlo does not cache the states of recurrent layers beside KV caches of several sizes yet",
            next_step="start with --no-enable-prefix-caching",
        )
    keeps_all = config.cache_config.prefix_cache_retention_interval != 0
    spec = StateRowsSpec(shapes=((pages.pop(),),), rows=rows, keeps_all=keeps_all, **one)
    return {f"states.{index}": spec for index in range(max(len(group.layer_names) for group in groups))}


def _specs(group: compat.KVCacheGroupSpec) -> Sequence[compat.KVCacheSpec]:
    """The spec of each layer of a group."""
    spec = group.kv_cache_spec
    return tuple(getattr(spec, "kv_cache_specs", {"": spec}).values())
