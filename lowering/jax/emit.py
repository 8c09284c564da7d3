"""Emits JAX functions, in which rules with loops are written: matrix factorizations, special functions.

Comes in: a JAX function over arrays and its static arguments. Goes out: a call of a private function that has its StableHLO.
Guaranteed: calls with the same types share one function, which has no custom call, so that the module stays portable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import torch

from ...runtime.core.plugins import settle
from ..emit.context import Context
from ..emit.functions import call
from ..errors import LoweringError
from ..types import FROM_NUMPY, TensorType, Value, numpy_dtype

PLATFORM = "tpu"
"""JAX lowers linear algebra to LAPACK calls for the CPU, but to StableHLO, which every target compiles, for the TPU."""

WIDE = (torch.int64, torch.uint64, torch.float64, torch.complex128)
"""Dtypes that JAX supports only in its 64-bit mode."""


def emit_jax(ctx: Context, function: Callable[..., Any], *operands: Value, **static: Any) -> list[Value]:
    """Calls `function(*operands, **static)` in the module; static: hashable. Returns its results in order.

    Raises LoweringError where JAX lowers the function to a custom call.
    """
    types = [operand.type for operand in operands]
    key = ("jax", function, tuple(types), tuple(sorted(static.items())))

    def lower() -> tuple[str, list[TensorType]]:
        source, results = _lowered(function, types, static)
        if "custom_call" in source:
            raise LoweringError(
                f"{ctx.target_op}: the JAX function {function.__name__} needs a custom call, which is not portable",
                next_step="report this as a bug of fxhlo",
            )
        return source, results

    return call(ctx.functions.adopted(key, function.__name__.strip("_"), lower), operands)


def _lowered(
    function: Callable[..., Any], operands: Sequence[TensorType], static: Mapping[str, Any]
) -> tuple[str, list[TensorType]]:
    """Lowers the function; returns the text of a StableHLO module and the types of its results."""
    settle()  # lowering queries jax's devices
    shapes = [jax.ShapeDtypeStruct(shape, numpy_dtype(dtype)) for shape, dtype in operands]
    with jax.enable_x64(any(dtype in WIDE for _, dtype in operands)):
        jitted = jax.jit(lambda *arrays: function(*arrays, **static), keep_unused=True)
        lowered = jitted.trace(*shapes).lower(lowering_platforms=(PLATFORM,))
    results = [TensorType(tuple(info.shape), FROM_NUMPY[info.dtype]) for info in jax.tree.leaves(lowered.out_info)]
    return lowered.as_text(), results
