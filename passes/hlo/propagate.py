"""Follows how values lie on a mesh through the ops between kernels: what a partition rule is asked with.

Comes in: an op, and the shardings of its operands. Goes out: the sharding of its results, or None where this file knows no rule for
it. It only chooses how kernels are called: XLA partitions every op by itself, so that an unknown one costs at most a collective.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from ...runtime.core.errors import SignatureError
from ...runtime.core.mesh import Mesh
from ...runtime.core.sharding import REPLICATED, Sharding
from ..mlir import ir, stablehlo

Shape = tuple[int, ...]

ELEMENTWISE = frozenset(
    (
        "stablehlo.abs", "stablehlo.add", "stablehlo.and", "stablehlo.ceil", "stablehlo.clamp", "stablehlo.compare",
        "stablehlo.convert", "stablehlo.cosine", "stablehlo.divide", "stablehlo.exponential", "stablehlo.exponential_minus_one",
        "stablehlo.floor", "stablehlo.log", "stablehlo.log_plus_one", "stablehlo.logistic", "stablehlo.maximum",
        "stablehlo.minimum", "stablehlo.multiply", "stablehlo.negate", "stablehlo.not", "stablehlo.or", "stablehlo.power",
        "stablehlo.remainder", "stablehlo.rsqrt", "stablehlo.select", "stablehlo.sign", "stablehlo.sine", "stablehlo.sqrt",
        "stablehlo.subtract", "stablehlo.tan", "stablehlo.tanh", "stablehlo.xor", "chlo.erf", "chlo.square",
    )
)  # fmt: skip
"""Ops whose operands of the result's shape lie as the result does."""


def propagated(operation: ir.Operation, operands: Sequence[Sharding], mesh: Mesh) -> Sharding | None:
    """The sharding of the op's one result, where it follows from its operands without any communication."""
    if len(operation.results) != 1 or all(sharding.replicated for sharding in operands):
        return REPLICATED
    shapes = [shape_of(operand) for operand in operation.operands]
    result = shape_of(operation.results[0])
    if operation.name in ELEMENTWISE:
        return _joined([one for one, shape in zip(operands, shapes, strict=True) if shape == result])
    rule = RULES.get(operation.name)
    try:
        found = None if rule is None else rule(operation, operands, shapes, result, mesh)
        return None if found is None or found.shard(result, mesh) is None else found
    except SignatureError:  # a size that does not divide, or one axis for two dimensions
        return None


def shape_of(value: ir.Value[Any]) -> Shape:
    return tuple(ir.RankedTensorType(value.type).shape)


def _joined(shardings: Sequence[Sharding]) -> Sharding | None:
    """The one sharding that operands of one shape have, besides those that are whole on every device."""
    different = {one for one in shardings if not one.replicated}
    return different.pop() if len(different) == 1 else None


def _axes(sharding: Sharding, shape: Shape) -> tuple[tuple[str, ...], ...]:
    return sharding.dimensions or ((),) * len(shape)


def _reshape(
    operation: ir.Operation, operands: Sequence[Sharding], shapes: Sequence[Shape], result: Shape, mesh: Mesh
) -> Sharding | None:
    """A dimension's axes go to the outermost of the dimensions that it becomes, or come from the outermost of those that it was."""
    (given,), (shape,) = operands, shapes
    dimensions: list[tuple[str, ...]] = [()] * len(result)
    for before, after in factors(shape, result):
        split = [index for index in before if _axes(given, shape)[index]]
        if not split:
            continue
        outermost = next((index for index in before if shape[index] > 1), before[0])
        if split != [outermost] or not after:
            return None
        target = next((index for index in after if result[index] > 1), after[0])
        dimensions[target] = given.dimensions[outermost]
    return Sharding(tuple(dimensions))


def factors(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]]:
    """The shortest runs of dimensions, in order, that have equal numbers of elements on both sides of a reshape."""
    if 0 in before:
        return []
    found, left, right = [], 0, 0
    while left < len(before) or right < len(after):
        first, second = (left, right)
        left, right = min(left + 1, len(before)), min(right + 1, len(after))
        while (have := prod(before[first:left])) != (want := prod(after[second:right])):
            left, right = (left + 1, right) if have < want else (left, right + 1)
        found.append((list(range(first, left)), list(range(second, right))))
    return found


def _transpose(
    operation: ir.Operation, operands: Sequence[Sharding], shapes: Sequence[Shape], result: Shape, mesh: Mesh
) -> Sharding | None:
    order = list(ir.DenseI64ArrayAttr(operation.attributes["permutation"]))
    return Sharding(tuple(_axes(operands[0], shapes[0])[index] for index in order))


def _broadcast(
    operation: ir.Operation, operands: Sequence[Sharding], shapes: Sequence[Shape], result: Shape, mesh: Mesh
) -> Sharding | None:
    targets = list(ir.DenseI64ArrayAttr(operation.attributes["broadcast_dimensions"]))
    dimensions: list[tuple[str, ...]] = [()] * len(result)
    for index, target in enumerate(targets):
        dimensions[target] = _axes(operands[0], shapes[0])[index]
    return Sharding(tuple(dimensions))


def _slice(
    operation: ir.Operation, operands: Sequence[Sharding], shapes: Sequence[Shape], result: Shape, mesh: Mesh
) -> Sharding | None:
    axes = _axes(operands[0], shapes[0])
    cut = any(axes[index] and shapes[0][index] != size for index, size in enumerate(result))
    return None if cut else operands[0]


def _concatenate(
    operation: ir.Operation, operands: Sequence[Sharding], shapes: Sequence[Shape], result: Shape, mesh: Mesh
) -> Sharding | None:
    joined = _joined(operands)
    along = ir.IntegerAttr(operation.attributes["dimension"]).value
    return None if joined is None or joined.dimensions[along] else joined


def _dot(
    operation: ir.Operation, operands: Sequence[Sharding], shapes: Sequence[Shape], result: Shape, mesh: Mesh
) -> Sharding | None:
    """A batch's dimensions, and those that are not summed over; a sum over a split dimension takes a collective."""
    numbers = stablehlo.DotDimensionNumbers(operation.attributes["dot_dimension_numbers"])
    batches = (list(numbers.lhs_batching_dimensions), list(numbers.rhs_batching_dimensions))
    summed = (list(numbers.lhs_contracting_dimensions), list(numbers.rhs_contracting_dimensions))
    left, right = (_axes(sharding, shape) for sharding, shape in zip(operands, shapes, strict=True))
    if any(left[index] for index in summed[0]) or any(right[index] for index in summed[1]):
        return None
    both = zip(*batches, strict=True)
    found = [left[one] or right[other] for one, other in both]
    for axes, taken in ((left, batches[0] + summed[0]), (right, batches[1] + summed[1])):
        found += [one for index, one in enumerate(axes) if index not in taken]
    return Sharding(tuple(found))


RULES: dict[str, Callable[..., Sharding | None]] = {
    "stablehlo.reshape": _reshape,
    "stablehlo.transpose": _transpose,
    "stablehlo.broadcast_in_dim": _broadcast,
    "stablehlo.slice": _slice,
    "stablehlo.concatenate": _concatenate,
    "stablehlo.dot_general": _dot,
}
