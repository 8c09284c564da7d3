"""The paged cache of a latent attention layer (MLA): blocks of tokens, one latent per token for all heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .spec import StateSpec

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import KVCacheSpec


@dataclass(frozen=True, kw_only=True)
class LatentKV(StateSpec):
    """[num_blocks, block_size, size]: a token's compressed keys and values, then its rotary part.

    A block's old values are never read: `seq_lens` limits a request to its own tokens.
    """

    block_size: int
    size: int

    @classmethod
    def of(cls, layer: str, *, block_size: int, size: int, dtype: torch.dtype) -> LatentKV:
        return cls(
            layer=layer,
            name=f"kv_cache.{layer}",
            shape=("num_blocks", block_size, size),
            dtype=str(dtype).removeprefix("torch."),
            block_size=block_size,
            size=size,
        )

    def for_vllm(self) -> KVCacheSpec:
        """A latent spec without a window: the kernel applies it, and one block table serves all layers."""
        from .. import compat

        return compat.MLAAttentionSpec(
            block_size=self.block_size, num_kv_heads=1, head_size=self.size, dtype=getattr(torch, self.dtype)
        )
