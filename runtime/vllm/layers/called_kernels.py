"""vLLM's compiled kernels that a model's class calls by name, in plain torch: most classes call a layer, which has a form in torch."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, ones

from .kind import LayerKind, Replacement, replaced_in
from .linear_attention import norm

MODULE = "vllm._custom_ops"


def rms_norm(out: Tensor, input: Tensor, weight: Tensor | None, epsilon: float) -> None:
    """input [..., C], weight [C] -> out [..., C], written."""
    out.copy_(norm(input, ones(()) if weight is None else weight, epsilon))


def replacements() -> Iterable[Replacement]:
    yield from replaced_in(MODULE, {"rms_norm": rms_norm})


def is_one(layer: object) -> bool:
    """False: no layer is of this kind, which has functions alone."""
    return False


def states(name: str, layer: object, block_size: int) -> tuple[()]:
    return ()


KIND = LayerKind("kernels called by name", is_one, states, replacements)
