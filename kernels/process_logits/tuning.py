"""Block sizes of `fxhlo.process_logits` on TPU, which keeps a block of rows in VMEM, and the VMEM that they need."""

from __future__ import annotations

from ...runtime.core.targets import LANES, MIB, SUBLANES

CHUNK = 32 * LANES
"""Tokens per step: those covered by one vector of mask words. Blocks are padded to a multiple of it."""
ENTRIES = 1024
"""Entries of a row's sparse lists in SMEM at a time."""


def padded(size: int) -> int:
    return -(-size // CHUNK) * CHUNK


def vmem_bytes(size: int, itemsize: int) -> int:
    """VMEM bytes: double buffers of logits, mask words and results, and the compiler's scratch."""
    return SUBLANES * padded(size) * 2 * (itemsize + 4) + SUBLANES * padded(size) // 4 + 2 * MIB
