"""The paged KV cache of an attention layer: blocks of tokens, keys and values of each head side by side."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from .spec import StateSpec

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import KVCacheSpec


@dataclass(frozen=True, kw_only=True)
class PagedKV(StateSpec):
    """[num_blocks, block_size, 2 * kv_heads, head_size], head h's keys at 2 * h and its values at 2 * h + 1.

    A block's old values are never read: `seq_lens` limits a request to its own tokens. window: a token reads only the last
    `window` tokens; chunk: only those of its own `chunk` tokens; 0: all before it.
    """

    block_size: int
    kv_heads: int
    head_size: int
    window: int = 0
    chunk: int = 0

    @classmethod
    def of(
        cls,
        layer: str,
        *,
        block_size: int,
        kv_heads: int,
        head_size: int,
        dtype: torch.dtype,
        window: int = 0,
        chunk: int = 0,
    ) -> PagedKV:
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
            window=window,
            chunk=chunk,
        )

    def in_blocks_of(self, block_size: int) -> PagedKV:
        """The same cache in blocks of another number of tokens."""
        first, _, *rest = self.shape
        return replace(self, block_size=block_size, shape=(first, block_size, *rest))

    def for_vllm(self) -> KVCacheSpec:
        """The spec of the tokens that are still read: all, those of a window, or those of the chunk that a token is in."""
        from .. import compat

        sizes: dict[str, Any] = {
            "block_size": self.block_size,
            "num_kv_heads": self.kv_heads,
            "head_size": self.head_size,
            "dtype": getattr(torch, self.dtype),
        }
        if self.window:
            return compat.SlidingWindowSpec(**sizes, sliding_window=self.window)
        if self.chunk:
            return compat.ChunkedLocalAttentionSpec(**sizes, attention_chunk_size=self.chunk)
        return compat.FullAttentionSpec(**sizes)

    def whole(self) -> PagedKV:
        """The same cache with every token kept; the kernel applies the window."""
        return replace(self, window=0, chunk=0)
