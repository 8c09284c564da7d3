"""The paged KV cache of an attention layer: blocks of tokens, keys and values of each head side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .spec import StateSpec

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import KVCacheSpec


@dataclass(frozen=True, kw_only=True)
class PagedKV(StateSpec):
    """[num_blocks, block_size, 2 * kv_heads, head_size], head h's keys at 2 * h and its values at 2 * h + 1.

    A block's old values are never read: `seq_lens` limits a request to its own tokens.
    """

    block_size: int
    kv_heads: int
    head_size: int

    @classmethod
    def of(cls, layer: str, *, block_size: int, kv_heads: int, head_size: int, dtype: torch.dtype) -> PagedKV:
        shape = ("num_blocks", block_size, 2 * kv_heads, head_size)
        name = str(dtype).removeprefix("torch.")
        return cls(
            layer=layer,
            name=f"kv_cache.{layer}",
            shape=shape,
            dtype=name,
            block_size=block_size,
            kv_heads=kv_heads,
            head_size=head_size,
        )

    def for_vllm(self) -> KVCacheSpec:
        """A full-attention spec, for sliding windows too: the kernel applies the window, and one block table serves all layers."""
        from .. import compat

        return compat.FullAttentionSpec(
            block_size=self.block_size,
            num_kv_heads=self.kv_heads,
            head_size=self.head_size,
            dtype=getattr(torch, self.dtype),
        )
