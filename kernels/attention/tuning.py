"""Block sizes of the flash attention on TPU, and the sequences and heads that are worth their padding."""

from __future__ import annotations

LEAST, MOST = 128, 1024
"""Tokens of a block: a multiple of the least, at most so many, as few blocks as that takes. 16 heads of 64 over 2,048 tokens: 221k cycles with
blocks of 1,024 on v6e, 281k with 512."""
PADDED = 512
"""Tokens from which on a sequence that is no multiple of LEAST is worth its padded copies (docs/kernels_considered.md)."""
HEAD_SIZES = (64, 128, 256)


def blocks_of(count: int) -> tuple[int, int]:
    """(tokens of a block, blocks): together at least `count` tokens."""
    blocks = -(-count // MOST)
    return -(-count // (blocks * LEAST)) * LEAST, blocks
