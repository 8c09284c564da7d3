"""Block sizes of the sampling kernels on TPU, which hold a block of rows in VMEM, and what they need of it."""

from __future__ import annotations

from ...runtime.core.targets import MIB, SUBLANES, Target

CHUNK = 2048
"""Tokens a step of a pass over the vocabulary; blocks are padded to a multiple of it."""
DRAW = 1024
"""Tokens a step of the draw, which has many live values a token."""


def too_large(size: int, needed: int, target: Target) -> str | None:
    """The reason why a block of `size` tokens, which takes `needed` bytes, is not taken; None where it fits."""
    if needed > target.vmem:
        return f"a block of {size} tokens takes {needed / MIB:.1f} MiB of VMEM, and there are {target.vmem / MIB:.0f}"
    return None


def padded(size: int) -> int:
    return -(-size // CHUNK) * CHUNK


def vmem_bytes(size: int, itemsize: int) -> int:
    """Two buffers of logits (one is filled while the other is used), one of 32-bit images, and the compiler's own."""
    return SUBLANES * padded(size) * (2 * itemsize + 4) + 2 * MIB
