"""Block sizes of the TPU kernel, computed from shapes before any compiler runs.

A fetch should be long enough to hide its latency, matmuls should have enough rows to fill the matrix unit, and
everything, including both buffers of each copy, must fit the generation's VMEM.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import lcm

from ...runtime.core.targets import LANES, Target, tiled_bytes
from ..spec import TensorSpec

FETCH = 2**20
"""Target bytes per fetch of pages: smaller fetches expose latency, larger ones gain nothing."""
CHUNK = 512
"""Keys processed at a time."""
ROWS = 256
"""Target score rows per KV head of a tile of queries, and the most tokens of a tile."""
VMEM_SHARE = 0.8
"""Share of VMEM for this kernel; the compiler uses the rest."""
SMEM_SLACK = 64 * 1024
HEAD_SIZES = range(16, 257, 16)
BLOCK_SIZES = (8, 16, 32, 64, 128, 256)
QUERIES = ("bfloat16", "float32")
CACHES = ("bfloat16", "float32", "float8_e4m3fn", "float8_e5m2", "int8")


@dataclass(frozen=True)
class Blocks:
    """keys: keys per fetch. chunk: keys processed at a time. tile: query rows of one request processed at a time. rows: score rows
    per KV head, padded to a hardware tile. compute: dtype of the matmuls' operands. vmem: bytes that the kernel needs."""

    keys: int
    chunk: int
    tile: int
    rows: int
    compute: str
    vmem: int


@cache
def blocks_for(query: TensorSpec, kv_cache: TensorSpec, table: int, target: Target) -> Blocks | None:
    """The largest blocks that fit; None if none do. `table`: the most pages of a request."""
    tokens, heads, _ = query.shape
    _, block_size, pairs, head_size = kv_cache.shape
    groups = heads // (pairs // 2)
    chunk = CHUNK if pairs > 4 else 2 * CHUNK  # with few heads, units stall on each other unless chunks are larger
    step = lcm(block_size, chunk)
    longest = -(-table * block_size // step) * step
    row = tiled_bytes((pairs, head_size), kv_cache.dtype.itemsize)
    keys = min(max(step, -(-FETCH // row // step) * step), longest)
    tile = 1 if tokens == 1 else min(max(16, ROWS // groups // 16 * 16), max(16, 1 << (tokens - 1).bit_length()))
    while True:
        blocks = _blocks(query, kv_cache, keys, chunk, tile)
        if blocks.vmem <= target.vmem * VMEM_SHARE:
            return blocks
        if tile > 32:
            tile //= 2
        elif keys > step:
            keys -= step
        elif tile > 16:
            tile //= 2
        elif chunk > LANES:
            chunk //= 2
            keys = step = lcm(block_size, chunk)
        else:
            return None


def _blocks(query: TensorSpec, kv_cache: TensorSpec, keys: int, chunk: int, tile: int) -> Blocks:
    _, heads, head_size = query.shape
    pairs = kv_cache.shape[2]
    kv_heads = pairs // 2
    rows = -(-heads // kv_heads * tile // 16) * 16
    low = query.dtype.name == "bfloat16" and kv_cache.dtype.itemsize < 4
    compute = 2 if low else 4
    scratch = (
        2 * tiled_bytes((keys, pairs, head_size), kv_cache.dtype.itemsize)
        + 3 * tiled_bytes((pairs, chunk, head_size), compute)  # by_head, and the compiler's scratch for the transpose
        + 6 * tiled_bytes((tile, heads, head_size), query.dtype.itemsize)
        + tiled_bytes((kv_heads, rows, head_size), compute)
        + 3 * tiled_bytes((kv_heads, rows, max(head_size, LANES)), 4)
        + 6 * tiled_bytes((rows, chunk), 4)  # intermediates of the softmax
    )
    return Blocks(keys, chunk, tile, rows, "bfloat16" if low else "float32", scratch + 2**20)
