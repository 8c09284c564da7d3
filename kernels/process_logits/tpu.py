"""`fxhlo.process_logits` on TPU: which operands the Pallas kernel takes (pallas.py), decided by the memories of a core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...runtime.core.targets import LANES, MIB, SUBLANES, Target
from ..sample.tpu import too_large
from ..spec import Operands

CHUNK = 32 * LANES
"""Tokens a step: those that a vector of mask words speaks of. Blocks are padded to a multiple of it."""
ENTRIES = 1024
"""Entries of a row's sparse lists that are in scalar memory at once."""


def supports(operands: Operands, attributes: Mapping[str, Any], target: Target) -> str | None:
    logits = operands[0]
    rows, size = logits.shape
    if logits.dtype.name not in ("float32", "bfloat16"):
        return f"logits are {logits.dtype}, not float32 or bfloat16"
    if rows < 1 or size < 1:
        return "there are no logits"
    return too_large(size, vmem_bytes(size, logits.dtype.itemsize), target)


def padded(size: int) -> int:
    return -(-size // CHUNK) * CHUNK


def vmem_bytes(size: int, itemsize: int) -> int:
    """Two buffers of logits, of mask words and of results, and the compiler's own."""
    return SUBLANES * padded(size) * 2 * (itemsize + 4) + SUBLANES * padded(size) // 4 + 2 * MIB


def process_logits(logits: Any, **parameters: Any) -> Any:
    """Operands and result as in `reference.process_logits`."""
    from .pallas import process_logits as lower  # jax only where it is wanted

    return lower(logits, **parameters)
