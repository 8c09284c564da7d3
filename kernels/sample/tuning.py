"""Block sizes of the sampling kernels on TPU, which keep a block of rows in VMEM, and the VMEM that they need."""

from __future__ import annotations

from ...runtime.core.targets import MIB, SUBLANES, Target

CHUNK = 2048
"""Tokens per step of a pass over the vocabulary; blocks are padded to a multiple of it."""
DRAW = 1024
"""Tokens per step of the draw, which has many live values per token."""


def too_large(size: int, needed: int, target: Target) -> str | None:
    """Reason why a block of `size` tokens, which needs `needed` bytes, does not fit VMEM; None if it fits."""
    if needed > target.vmem:
        return f"a block of {size} tokens takes {needed / MIB:.1f} MiB of VMEM, and there are {target.vmem / MIB:.0f}"
    return None


def padded(size: int) -> int:
    return -(-size // CHUNK) * CHUNK


def vmem_bytes(size: int, itemsize: int) -> int:
    """VMEM bytes: a double buffer of logits, one buffer of 32-bit images, and the compiler's scratch."""
    return SUBLANES * padded(size) * (2 * itemsize + 4) + 2 * MIB
