"""`fxhlo.moe` on TPU: rows sorted by expert, and twice the Pallas product of kernels/grouped_matmul, which reads chosen experts alone.

The products are float32, as in the reference; XLA fuses biases, activation and the rounding of its result between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jax import Array

from ...runtime.core.targets import Target
from ..grouped_matmul.tpu import product, visits_of
from ..grouped_matmul.tuning import tiles_for
from ..spec import Operands
from . import xla


def supports(operands: Operands, attributes: Mapping[str, Any], target: Target) -> str | None:
    named = operands.named
    floats = {spec.dtype.name for name, spec in named.items() if name not in ("topk_weights", "topk_ids")}
    if floats != {"bfloat16"}:
        return f"rows, weights and biases are {', '.join(sorted(floats))}, not bfloat16"
    if any(0 in spec.shape for spec in named.values()):
        return "an operand is empty"
    tokens, top = named["topk_ids"].shape
    for weights in (named["w13"], named["w2"]):
        experts, outputs, inputs = weights.shape
        tiles = tiles_for(tokens * top, experts, inputs, outputs, target)
        if isinstance(tiles, str):
            return tiles
    return xla.supports(operands, attributes)


def lower(*, topk_ids: Array, target: Target, **named: Any) -> Array:
    """Operands, by name, and result as in `reference.moe`."""

    def products(sizes: Array) -> Callable[[Array, Array], Array]:
        return partial(product, visits=visits_of(sizes, topk_ids.size, target), target=target)

    return xla.experts(products, topk_ids=topk_ids, **named)
