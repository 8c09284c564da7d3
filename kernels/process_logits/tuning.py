"""Block sizes of `fxhlo.process_logits` on TPU, which holds a block of rows in VMEM, and what they need of it."""

from __future__ import annotations

from ...runtime.core.targets import LANES, MIB, SUBLANES

CHUNK = 32 * LANES
"""Tokens a step: those that a vector of mask words speaks of. Blocks are padded to a multiple of it."""
ENTRIES = 1024
"""Entries of a row's sparse lists that are in scalar memory at once."""


def padded(size: int) -> int:
    return -(-size // CHUNK) * CHUNK


def vmem_bytes(size: int, itemsize: int) -> int:
    """Two buffers of logits, of mask words and of results, and the compiler's own."""
    return SUBLANES * padded(size) * 2 * (itemsize + 4) + SUBLANES * padded(size) // 4 + 2 * MIB
