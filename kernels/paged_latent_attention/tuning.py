"""Block sizes of the TPU kernel, computed from shapes before any compiler runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import lcm

from ...runtime.core.targets import LANES, Target, tiled_bytes
from ..paged_attention.tuning import FETCH, VMEM_SHARE, Blocks
from ..spec import TensorSpec

CHUNK = 512
"""Keys processed at a time."""
ROWS = 512
"""Target score rows of a tile: query rows times heads, which all multiply the same keys."""
HEADS_TOGETHER = 16
"""Heads are padded to a multiple of it, so that the rows of a tile stand side by side in registers of any dtype."""
BLOCK_SIZES = (16, 32, 64, 128, 256)
PROMPT_ROWS, PROMPT_PART, PROMPT_HEADS = 2048, 256, 8
"""Of the decompressed form, the most rows of a tile, those multiplied at a time, and the most heads of a block: each tile makes keys and
values anew, and each block of heads reads the latents anew."""
NEVER = 2**31 - 1


@dataclass(frozen=True)
class PromptBlocks:
    """Blocks of the decompressed form. heads, rows: of a tile. part: rows of it that are multiplied at a time. keys: of a block. least: rows
    of a request from which on the form takes fewer cycles than the absorbed one, NEVER where there are none. vmem: bytes that the kernel
    needs."""

    heads: int
    rows: int
    part: int
    keys: int
    least: int
    vmem: int


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
    keys = min(max(step, FETCH // tiled_bytes((1, size), itemsize) // step * step), longest)
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
        2 * tiled_bytes((keys, size), itemsize)
        + 2 * tiled_bytes((chunk, size), itemsize)  # a chunk as the products take it, and turned
        + 2 * tiled_bytes((rows, size), itemsize)
        + 2 * tiled_bytes((rows, latent), itemsize)
        + 2 * tiled_bytes((rows, latent), 4)
        + 2 * tiled_bytes((rows, LANES), 4)
        + 5 * tiled_bytes((rows, chunk), 4)  # intermediates of the softmax
        + 2**20
    )


@cache
def prompt_blocks_for(
    query: TensorSpec, kv_cache: TensorSpec, w_uk: TensorSpec, w_uv: TensorSpec, target: Target
) -> PromptBlocks | None:
    """The largest blocks of the decompressed form that fit; None if none do. query: [T, N, P + R]."""
    (tokens, heads, size), itemsize = query.shape, query.dtype.itemsize
    (_, nope, latent), value = w_uk.shape, w_uv.shape[2]
    least = least_rows(size, nope, latent, value, kv_cache.shape[2], target)
    part = PROMPT_PART
    keys = lcm(kv_cache.shape[1], CHUNK)
    rows = min(PROMPT_ROWS, max(part, 1 << (tokens - 1).bit_length()))
    together = next(count for count in range(min(heads, PROMPT_HEADS), 0, -1) if heads % count == 0)
    while True:
        vmem = _prompt_vmem(together, rows, part, keys, (size, nope, latent, value, kv_cache.shape[2]), itemsize)
        if vmem <= target.vmem * VMEM_SHARE:
            return PromptBlocks(together, rows, part, keys, least, vmem)
        if together > 1:
            together = next(count for count in range(together // 2, 0, -1) if heads % count == 0)
        elif rows > part:
            rows //= 2
        else:
            return None


def least_rows(size: int, nope: int, latent: int, value: int, cached: int, target: Target) -> int:
    """Rows of a request from which on keys and values of its context are made in fewer cycles than they save; NEVER if none are saved.

    A matrix unit multiplies by whole squares: a key's products take as many of them as its size has, begun ones too.
    """

    def squares(length: int) -> int:
        return -(-length // target.mxu) * target.mxu

    saved = squares(cached) + squares(latent) - squares(size) - squares(value)  # for a row and a key
    made = squares(latent) * (squares(nope) + squares(value))  # for a key
    return -(-made // saved) if saved > 0 else NEVER


def _prompt_vmem(
    heads: int, rows: int, part: int, keys: int, sizes: tuple[int, int, int, int, int], itemsize: int
) -> int:
    size, nope, latent, value, cached = sizes
    return (
        2 * tiled_bytes((heads, rows, size), itemsize)
        + 2 * tiled_bytes((heads, rows, value), itemsize)
        + 2 * tiled_bytes((heads, nope, latent), itemsize)
        + 2 * tiled_bytes((heads, latent, value), itemsize)
        + 4 * tiled_bytes((keys, cached), itemsize)
        + 2 * tiled_bytes((keys, size), itemsize)
        + 2 * tiled_bytes((keys, value), itemsize)
        + tiled_bytes((keys, size), 4)
        + tiled_bytes((keys, value), 4)
        + tiled_bytes((heads, rows, value), 4)
        + 2 * tiled_bytes((heads, rows, LANES), 4)
        + 5 * tiled_bytes((part, keys), 4)  # intermediates of the softmax
        + tiled_bytes((part, size), itemsize)
        + 2**20
    )
