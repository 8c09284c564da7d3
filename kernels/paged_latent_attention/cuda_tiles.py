"""Sizes of the CUDA kernel's programs, as of kernels/paged_attention: one KV head, whose value is a part of its key."""

from __future__ import annotations

from functools import cache

from ..paged_attention.cuda_tiles import Tiles, power_of_two, rows_for, splits_for, width_of
from ..spec import TensorSpec

QUERIES = ("bfloat16", "float16", "float32")
HEADS = 32
"""Most heads of a program: 32 rows of 512 sums take half of the registers of eight warps."""
ROWS_A_REQUEST = 8
"""Most rows a request on average: of more, keys and values of all heads are decompressed once for many rows (xla.py), which takes fewer operations."""
STEP_BYTES = 40 * 1024
"""Bytes of the latents of one step, which are keys and values; in two stages 80 KiB of shared memory."""
LATENTS, ROTARY = range(16, 1025), range(16, 257)


@cache
def tiles_for(query: TensorSpec, kv_cache: TensorSpec, latent: int, requests: int, pages: int) -> Tiles:
    """query [T, N, P + R], kv_cache [blocks, block_size, L + R], block tables [requests, pages]."""
    tokens, heads, _ = query.shape
    _, block_size, size = kv_cache.shape
    group = min(heads, HEADS)
    padded = power_of_two(group)
    rows = rows_for(tokens, requests, padded)
    tiles = tokens if rows == 1 else tokens // rows + requests
    bytes_a_key = (width_of(latent) + width_of(size - latent)) * query.dtype.itemsize
    keys = min(max(16, power_of_two(STEP_BYTES // bytes_a_key + 1) // 2), 64)
    splits = splits_for(tiles * -(-heads // group), pages * block_size // keys)
    return Tiles(rows, tiles, group, padded, width_of(latent), keys, splits, warps=8, stages=2)
