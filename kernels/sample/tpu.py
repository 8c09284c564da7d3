"""`fxhlo.sample` on TPU: which operands the Pallas kernel takes (pallas.py), decided by the VMEM of the generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...runtime.core.targets import MIB, SUBLANES, Target
from ..spec import Operands

CHUNK = 2048
"""Tokens a step of a pass over the vocabulary; blocks are padded to a multiple of it."""


def supports(operands: Operands, attributes: Mapping[str, Any], target: Target) -> str | None:
    logits = operands[0]
    rows, size = logits.shape
    if logits.dtype.name not in ("float32", "bfloat16"):
        return f"logits are {logits.dtype}, not float32 or bfloat16"
    if rows < 1 or not 0 < size <= 2**19:
        return f"a vocabulary of {size} tokens could overflow the 32-bit sums of 2**19"
    return too_large(size, vmem_bytes(size, logits.dtype.itemsize), target)


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


def sample(logits: Any, temperature: Any, top_k: Any, top_p: Any, min_p: Any, seeds: Any, steps: Any) -> Any:
    """Operands and result as in `reference.sample`."""
    from .pallas import sample as lower  # jax only where it is wanted

    return lower(logits, temperature, top_k, top_p, min_p, seeds, steps)
