"""Sizes of the CUDA kernel's programs, as of kernels/paged_attention: one KV head, whose value is a part of its key."""

from __future__ import annotations

from functools import cache

from ..paged_attention.cuda_tiles import SHARED, Tiles, power_of_two, rows_for, splits_for, width_of
from ..spec import TensorSpec

QUERIES = ("bfloat16", "float16", "float32")
HEADS = 32
"""Most heads of a program: 32 rows of 512 sums take half of the registers of eight warps."""
ROWS_A_REQUEST = 8
"""Most rows a request on average: of more, keys and values of all heads are decompressed once for many rows (xla.py), which takes fewer operations."""
STEP_BYTES = 40 * 1024
"""Bytes of the latents of one step, which are keys and values; in two stages 80 KiB of shared memory."""
STAGES = 2
LATENTS, ROTARY = range(16, 1025), range(16, 257)


@cache
def tiles_for(
    query: TensorSpec, kv_cache: TensorSpec, latent: int, requests: int, pages: int, shared: int = SHARED
) -> Tiles | None:
    """query [T, N, P + R], kv_cache [blocks, block_size, L + R], block tables [requests, pages]. shared: bytes of shared memory of a program; None where
    that is too little."""
    tokens, heads, _ = query.shape
    _, block_size, size = kv_cache.shape
    row = (width_of(latent) + width_of(size - latent)) * query.dtype.itemsize
    keys = min(max(16, power_of_two(STEP_BYTES // row + 1) // 2), 64)
    group = min(heads, HEADS)
    rows = rows_for(tokens, requests, power_of_two(group))
    while shared_bytes(max(16, rows * power_of_two(group)), keys, row) > shared:
        if rows > 1:
            rows //= 2
        elif group > 16:
            group //= 2
        else:
            return None
    tiles = tokens if rows == 1 else tokens // rows + requests
    splits = splits_for(tiles * -(-heads // group), pages * block_size // keys)
    return Tiles(rows, tiles, group, power_of_two(group), width_of(latent), keys, splits, warps=8, stages=STAGES)


def shared_bytes(scores: int, keys: int, row: int) -> int:
    """Shared memory of a program, as XLA's Triton allocates it: rows of queries, steps of keys (one less than there are stages, unless products are of
    64 rows), and powers."""
    steps = STAGES if scores >= 64 else STAGES - 1
    return (scores + steps * keys) * row + 4 * scores * keys + 1024
