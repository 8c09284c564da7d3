"""The ragged paged attention of the jax wheel, with the block sizes that it is tuned to for v6e: a peer of ours."""

from __future__ import annotations

from typing import Any

from .layers import CONTEXT, Layer
from .straight import Straight

ROWS = 32
"""Rows of a tile of queries."""


def call(*, straight: int = 0, target: Any = None, **operands: Any) -> Any:
    """Attention by the wheel's kernel; it writes no cache. straight: blocks of keys that its loops process, 0 for what the data say."""
    import jax
    from jax.experimental import pallas as pl
    from jax.experimental.pallas.ops.tpu.ragged_paged_attention import kernel

    if straight:
        kernel.pl, kernel.lax = Straight(pl), Straight(jax.lax, 1, straight)  # type: ignore[assignment]
    (_, heads, size), (_, page, pairs, _) = operands["query"].shape, operands["kv_cache"].shape
    pages = pages_of(heads, pairs // 2, size, page)
    output = kernel.ragged_paged_attention(
        operands["query"], operands["kv_cache"], operands["seq_lens"], operands["block_tables"],
        operands["query_start_loc"], operands["seq_lens"][:1], sm_scale=operands["scale"],
        num_kv_pages_per_block=pages[0], num_queries_per_block=pages[1], vmem_limit_bytes=96 * 2**20,
    )  # fmt: skip
    return output, operands["kv_cache"]


def pages_of(heads: int, kv_heads: int, size: int, page: int) -> tuple[int, int]:
    """(pages of a block, rows of a tile)."""
    import jax.numpy as jnp
    from jax.experimental.pallas.ops.tpu.ragged_paged_attention import tuned_block_sizes as tuned

    tuned.get_tpu_version, tuned.get_device_name = lambda: 6, lambda *_: "TPU v6"
    bfloat16 = jnp.dtype(jnp.bfloat16)
    pages, rows = tuned.get_tuned_block_sizes(bfloat16, bfloat16, heads, kv_heads, size, page, 512, CONTEXT // page)
    return pages, min(rows, ROWS)


def sizes(layer: Layer) -> tuple[int, int]:
    """(keys of a block, rows of a tile) for a layer."""
    (_, heads, size), (_, page, pairs, _) = layer.operands["query"].shape, layer.operands["kv_cache"].shape
    pages, rows = pages_of(heads, pairs // 2, size, page)
    return pages * page, rows
