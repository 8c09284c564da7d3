"""Sizes of the CUDA kernel's programs, computed from shapes before any compiler runs.

Triton's tensors have powers of two of everything, and its matrix products 16 rows at least: heads that share a KV head are padded to
that, and so is a head's size. One step's keys and values must fit shared memory as often as the loop is pipelined.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from ...runtime.core.targets import Target
from ..spec import TensorSpec

HEAD_SIZES = range(16, 257)
QUERIES = ("bfloat16", "float16", "float32")
CACHES = ("bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e5m2", "int8")
SCORE_ROWS = 64
"""Rows of scores of a program that has rows enough: query rows times the heads that share a KV head."""
ROWS_ALONE = 16
"""Most rows of a batch of which each has programs of its own, whatever request it is of."""
STEP_BYTES = 16 * 1024
"""Bytes of the keys of one step: with the values and three stages 96 KiB of shared memory, so that two programs fit an H100's 227."""
SHARED, OTHERWISE_SHARED = 99 * 1024, 16 * 1024
"""Bytes of shared memory that a program may have on any card since 2020, and those that are no keys or values."""
PROGRAMS = 1024
"""As many programs should there be: a few for each of an H100's 132 multiprocessors. With fewer, programs share the keys of a tile."""
SPLITS = 16
WARP_NUMBERS = 64 * 128
"""Most numbers of a program's output that four warps keep in their registers."""


@dataclass(frozen=True)
class Tiles:
    """rows: query rows of one request that a program takes. tiles: of rows, at most. group: query heads of a KV head. padded: those, and
    `head` a head's size, up to a power of two. keys: of a step. splits: programs that share the keys of a tile. warps, stages: Triton's, of a program."""

    rows: int
    tiles: int
    group: int
    padded: int
    head: int
    keys: int
    splits: int
    warps: int = 4
    stages: int = 3

    @property
    def scores(self) -> int:
        """Rows of a program's matrix products."""
        return max(16, self.rows * self.padded)


@cache
def tiles_for(query: TensorSpec, kv_cache: TensorSpec, requests: int, pages: int, shared: int = SHARED) -> Tiles:
    """query [T, Hq, D], kv_cache [blocks, block_size, 2 * Hkv, D], block tables [requests, pages]. shared: bytes of shared memory of a program."""
    (tokens, heads, size), (_, block_size, pairs, _) = query.shape, kv_cache.shape
    group, kv_heads = heads // (pairs // 2), pairs // 2
    padded, head = power_of_two(group), width_of(size)
    rows = rows_for(tokens, requests, padded)
    tiles = tokens if rows == 1 else tokens // rows + requests
    keys = min(max(16, STEP_BYTES // (head * max(query.dtype.itemsize, kv_cache.dtype.itemsize))), 128)
    splits = splits_for(tiles * kv_heads, pages * block_size // keys)
    warps = 4 if max(16, rows * padded) * head <= WARP_NUMBERS else 8
    stages = 3 if shared - OTHERWISE_SHARED >= 3 * 2 * STEP_BYTES else 2
    return Tiles(rows, tiles, group, padded, head, keys, splits, warps, stages)


def shared_of(target: Target) -> int:
    """Bytes of shared memory that a program may have: all of a multiprocessor's but one KiB."""
    return SHARED if target.gpu is None else target.gpu.shared - 1024


def rows_for(tokens: int, requests: int, padded: int) -> int:
    """Query rows of a tile, each with so many rows of scores. Where there are few, each has programs of its own."""
    if tokens <= max(requests, ROWS_ALONE):
        return 1
    return min(max(1, SCORE_ROWS // padded), power_of_two(tokens))


def splits_for(programs: int, steps: int) -> int:
    """Programs that share a tile's keys, of which there are so many steps at most; each has two of them at least."""
    wanted = power_of_two(-(-PROGRAMS // programs))
    return min(wanted, SPLITS, power_of_two(max(1, steps // 2) + 1) // 2)


def width_of(size: int) -> int:
    """Columns of a tensor for so many numbers."""
    return max(16, power_of_two(size))


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()
