"""Block sizes of flash attention on TPU, and the sequence lengths and head sizes worth padding."""

from __future__ import annotations

LEAST, MOST = 128, 1024
"""Tokens per block: a multiple of LEAST, at most MOST, for the smallest number of blocks. 16 heads of 64 over 2,048 tokens take 221k cycles
with blocks of 1,024 on v6e, 281k with 512."""
PADDED = 512
"""Minimum length for which padding a sequence to a multiple of LEAST pays off (docs/kernels_considered.md)."""
HEAD_SIZES = (64, 128, 256)


def blocks_of(count: int) -> tuple[int, int]:
    """(tokens per block, number of blocks) that cover `count` tokens."""
    blocks = -(-count // MOST)
    return -(-count // (blocks * LEAST)) * LEAST, blocks
