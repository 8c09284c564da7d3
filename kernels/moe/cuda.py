"""`fxhlo.moe` on CUDA: rows sorted by expert, and twice the Pallas product of kernels/grouped_matmul, which reads chosen experts alone.

The products are float32, as in the reference; XLA fuses biases, activation and the rounding of its result between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jax import Array

from ...runtime.core.plugins import without_triton
from ..grouped_matmul.cuda import DTYPES, product
from ..spec import Operands
from . import xla


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    named = operands.named
    floats = {spec.dtype.name for name, spec in named.items() if name not in ("topk_weights", "topk_ids")}
    if len(floats) > 1 or not floats <= set(DTYPES):
        return f"rows, weights and biases are {', '.join(sorted(floats))}, not all {' or all '.join(DTYPES)}"
    if any(0 in spec.shape for spec in named.values()):
        return "an operand is empty"
    return xla.supports(operands, attributes) or without_triton()


def lower(**named: Any) -> Array:
    """Operands, by name, and result as in `reference.moe`."""

    def products(sizes: Array) -> Callable[[Array, Array], Array]:
        return partial(product, sizes=sizes)

    return xla.experts(products, **named)
