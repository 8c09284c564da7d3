"""Block sizes of the TPU kernel, computed from shapes before any compiler runs."""

from __future__ import annotations

from functools import cache
from math import lcm

from ...runtime.core.targets import LANES, Target
from ..paged_attention.tuning import FETCH, VMEM_SHARE, Blocks, padded_bytes
from ..spec import TensorSpec

CHUNK = 512
"""Keys processed at a time."""
ROWS = 512
"""Target score rows of a tile: query rows times heads, which all multiply the same keys."""
HEADS_TOGETHER = 16
"""Heads are padded to a multiple of it, so that the rows of a tile stand side by side in registers of any dtype."""
BLOCK_SIZES = (16, 32, 64, 128, 256)


def padded_heads(heads: int) -> int:
    return -(-heads // HEADS_TOGETHER) * HEADS_TOGETHER


@cache
def blocks_for(query: TensorSpec, kv_cache: TensorSpec, latent: int, table: int, target: Target) -> Blocks | None:
    """The largest blocks that fit; None if none do. query: [T, N, ...]. latent: size of a value. table: the most pages of a request."""
    tokens, heads, _ = query.shape
    _, block_size, size = kv_cache.shape
    heads, itemsize = padded_heads(heads), query.dtype.itemsize
    chunk = CHUNK
    step = lcm(block_size, chunk)
    longest = -(-table * block_size // step) * step
    keys = min(max(step, FETCH // padded_bytes((1, size), itemsize) // step * step), longest)
    tile = 1 if tokens == 1 else max(1, min(ROWS // heads, 1 << (tokens - 1).bit_length()))
    tile = 1 << (tile.bit_length() - 1)
    while True:
        vmem = _vmem(tile, heads, size, latent, keys, chunk, itemsize)
        if vmem <= target.vmem * VMEM_SHARE:
            return Blocks(keys, chunk, tile, tile * heads, query.dtype.name, vmem)
        if tile * heads > 2 * LANES and tile > 1:
            tile //= 2
        elif keys > step:
            keys -= step
        elif chunk > LANES:
            chunk //= 2
            keys = step = lcm(block_size, chunk)
        elif tile > 1:
            tile //= 2
        else:
            return None


def _vmem(tile: int, heads: int, size: int, latent: int, keys: int, chunk: int, itemsize: int) -> int:
    rows = tile * heads
    return (
        2 * padded_bytes((keys, size), itemsize)
        + 2 * padded_bytes((chunk, size), itemsize)  # a chunk as the products take it, and turned
        + 2 * padded_bytes((rows, size), itemsize)
        + 2 * padded_bytes((rows, latent), itemsize)
        + 2 * padded_bytes((rows, latent), 4)
        + 2 * padded_bytes((rows, LANES), 4)
        + 5 * padded_bytes((rows, chunk), 4)  # intermediates of the softmax
        + 2**20
    )
