"""`fxhlo.logprobs` on TPU: which operands the Pallas kernel takes (pallas.py), decided by the VMEM of the generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...runtime.core.targets import LANES, Target
from ..sample.tpu import too_large, vmem_bytes
from ..spec import Operands


def supports(operands: Operands, attributes: Mapping[str, Any], target: Target) -> str | None:
    logits = operands[0]
    rows, size = logits.shape
    count = attributes["count"]
    if logits.dtype.name not in ("float32", "bfloat16"):
        return f"logits are {logits.dtype}, not float32 or bfloat16"
    if count > size:
        return f"{count} tokens asked of a vocabulary of {size}"
    if rows < 1 or count >= LANES:
        return f"{rows} rows and {count} tokens; results take one vector of {LANES} lanes a row"
    return too_large(size, vmem_bytes(size, logits.dtype.itemsize), target)


def logprobs(logits: Any, tokens: Any, enabled: Any, *, count: int) -> Any:
    """Operands and results as in `reference.logprobs`."""
    from .pallas import logprobs as lower  # jax only where it is wanted

    return lower(logits, tokens, enabled, count=count)
