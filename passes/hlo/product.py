"""A product with a weight as plain StableHLO, which XLA partitions: what `fxhlo.linear` is on a mesh where the target has no kernel for it."""

from __future__ import annotations

from ...runtime.core.sharding import Sharding
from ..mlir import ir, stablehlo
from .shardy import Value, constrained


def product(values: Value, weight: Value, bias: Value | None, sharding: Sharding) -> Value:
    """values [M, K], weight [N, K], bias [N] -> [M, N], accumulated in float32 and lying as `sharding` says before the bias is added."""
    given, rows = ir.RankedTensorType(values.type), ir.RankedTensorType(weight.type).shape[0]
    element = given.element_type
    exact = element if str(element) == "f64" else ir.F32Type.get()
    numbers = stablehlo.DotDimensionNumbers.get(
        lhs_batching_dimensions=[],
        rhs_batching_dimensions=[],
        lhs_contracting_dimensions=[1],
        rhs_contracting_dimensions=[1],
    )
    shape = [given.shape[0], rows]
    # XLA rounds float32 operands to bfloat16 on TPUs unless it is told otherwise
    highest = stablehlo.PrecisionAttr.get("HIGHEST")
    precision = ir.ArrayAttr.get([highest, highest]) if str(element) == "f32" else None
    made: Value = stablehlo.dot_general(
        ir.RankedTensorType.get(shape, exact), values, weight, numbers, precision_config=precision
    )
    result = ir.RankedTensorType.get(shape, element)
    if exact != element:
        made = stablehlo.convert(result, made)
    made = constrained(made, sharding)
    if bias is None:
        return made
    return stablehlo.add(made, stablehlo.broadcast_in_dim(result, bias, ir.DenseI64ArrayAttr.get([1])))
