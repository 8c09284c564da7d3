"""Values on a mesh: how each lies, and those that hold, on every device, a piece of each of several matrices.

A weight of several matrices (query, key and value; the parts of a state space's projection) is one product, whose columns lie as the
weight's rows do: device by device, a piece of each matrix (`Split`). Such a value is *fused*. What takes it apart at the matrices' bounds
(a slice), or works on each element alone, is done where the pieces are; any other op gets the columns in the model's order, from all
devices. Parts that are concatenated along the dimension by which they are split become a fused value in the same way.

Comes in: ops at whose place others are put. Goes out: the values that stand for their results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from ...kernels.partition import along
from ...runtime.core.errors import UnsupportedError
from ...runtime.core.sharding import REPLICATED, Part, Sharding, Split
from ...runtime.core.sharding import along as piece
from ..mlir import ir, stablehlo
from .plan import NEXT_STEP
from .propagate import ELEMENTWISE, factors, shape_of
from .shardy import Collectives, Value, after, constrained, manual


@dataclass
class Fused:
    """A value whose dimension `split.dimension` has pieces. weight: the name of the argument that it is, which stays in pieces.

    runs: values of some of its matrices, one after the other, by the numbers of the first and of the one behind the last.
    """

    value: Value
    split: Split
    weight: str | None = None
    runs: dict[tuple[int, int], Value] = field(default_factory=dict)
    joined: Value | None = None

    @property
    def ends(self) -> list[int]:
        """Where the matrices begin and end in the model's order."""
        return [0, *accumulate(part.size for part in self.split.parts)]

    @property
    def shape(self) -> tuple[int, ...]:
        """In the model's order."""
        found = list(shape_of(self.value))
        found[self.split.dimension] = self.ends[-1]
        return tuple(found)


class Values:
    """The values of one module. lying: how they lie; those that are not in it are whole on every device, or nothing is known of them."""

    def __init__(self, collectives: Collectives) -> None:
        self.mesh = collectives.mesh
        self._collectives = collectives
        self.lying: dict[Value, Sharding] = {}
        self.fused: dict[Value, Fused] = {}
        self._whole: dict[Value, Value] = {}

    def of(self, value: Value) -> Sharding:
        return self.lying.get(value, REPLICATED)

    def fuse(self, value: Value, split: Split, weight: str | None = None) -> None:
        """Notes that a value has pieces as `split` says. weight: of an argument of that name."""
        self.lying[value] = split.sharding
        if len(split.parts) > 1 and not split.sharding.replicated:
            self.fused[value] = Fused(value, split, weight)

    def whole(self, value: Value) -> Value:
        """The value with all of it on every device; made once."""
        if value not in self._whole:
            with after(value):
                self._whole[value] = constrained(value, REPLICATED)
        return self._whole[value]

    # -- ops on fused values -------------------------------------------------------------------------------------------

    def replacement(self, operation: ir.Operation) -> Value | None:
        """What stands for the op's one result where its operands have pieces and it keeps them; None where it does not."""
        if len(operation.results) != 1:
            return None
        if operation.name == "stablehlo.concatenate":
            return self._concatenated(operation)
        if not any(operand in self.fused for operand in operation.operands):
            return None
        with ir.InsertionPoint(operation), operation.location:
            if operation.name == "stablehlo.slice":
                return self._sliced(operation)
            if operation.name in ELEMENTWISE:
                return self._elementwise(operation)
            if operation.name == "stablehlo.reshape":
                return self._reshaped(operation)
        return None

    def in_pieces(self, value: Value, split: Split, dimension: int) -> Value:
        """The value with its `dimension` in the pieces of `split`, at the insertion point."""
        found = self.fused.get(value)
        if found is not None and (found.split.parts, found.split.dimension) == (split.parts, dimension):
            return value
        if found is not None:
            value = self.joined(value, "an op that takes other pieces")
        wanted = _moved(split, len(shape_of(value)), dimension)
        made = self._filled(value, wanted)
        if made is None:
            made = self._cut(value if self.of(value).replicated else self.whole(value), wanted)
        self.fuse(made, wanted)
        return made

    def joined(self, value: Value, user: str) -> Value:
        """The value in the model's order, all of it on every device, at the insertion point; itself where it has no pieces.

        user: what reads it. Raises UnsupportedError for a weight.
        """
        fused = self.fused.get(value)
        if fused is None:
            return value
        if fused.weight is not None:
            raise UnsupportedError(
                f"{fused.weight} has several matrices and is read by {user}, so that it cannot be split",
                next_step=NEXT_STEP,
            )
        if fused.joined is None:
            parts = [self.whole(self._run(fused, index, index + 1)) for index in range(len(fused.split.parts))]
            fused.joined = stablehlo.concatenate(parts, fused.split.dimension)
        return fused.joined

    def _sliced(self, operation: ir.Operation) -> Value | None:
        """Some of the matrices, where the slice is of these alone."""
        fused = self.fused[operation.operands[0]]
        starts, limits, strides = (
            list(ir.DenseI64ArrayAttr(operation.attributes[name]))
            for name in ("start_indices", "limit_indices", "strides")
        )
        ends, dimension = fused.ends, fused.split.dimension
        first, last = starts[dimension], limits[dimension]
        starts[dimension], limits[dimension] = 0, ends[-1]
        whole = not any(starts) and tuple(limits) == fused.shape and set(strides) == {1}
        if not whole or first not in ends or last not in ends:
            return None
        return self._run(fused, ends.index(first), len(ends) - 1 - ends[::-1].index(last))

    def _run(self, fused: Fused, first: int, last: int) -> Value:
        """The matrices from `first` to before `last`, as every device takes them from its pieces."""
        if (first, last) not in fused.runs:
            dimension, rank = fused.split.dimension, len(fused.shape)
            parts = fused.split.parts[first:last]
            ends = [0, *accumulate(piece(part, self.mesh) for part in fused.split.parts)]
            split = _split(parts, rank, dimension)
            shape = list(fused.shape)
            shape[dimension] = sum(part.size for part in parts)
            type_ = _typed(split.shape(shape, self.mesh), fused.value)
            with after(fused.value):
                (made,) = manual(
                    [(fused.value, along(rank, dimension, fused.split.axes))],
                    [(type_, split.sharding)],
                    self.mesh,
                    lambda values: [_slice(values[0], dimension, ends[first], ends[last])],
                )
            self.fuse(made, split, fused.weight)
            fused.runs[first, last] = made
        return fused.runs[first, last]

    def _elementwise(self, operation: ir.Operation) -> Value | None:
        """The op on pieces; operands of the result's shape are brought into the pieces of the first that has any."""
        shape = shape_of(operation.results[0])
        fused = [self.fused[operand] for operand in operation.operands if operand in self.fused]
        split = fused[0].split
        if any(one.shape != shape or one.split != split for one in fused):
            return None
        operands = []
        for operand in operation.operands:
            full = operand in self.fused or shape_of(operand) == shape
            operands.append(self.in_pieces(operand, split, split.dimension) if full else operand)
        weight = fused[0].weight if len(operands) == 1 else None
        return self._again(operation, operands, split.shape(shape, self.mesh), split, weight)

    def _reshaped(self, operation: ir.Operation) -> Value | None:
        """A reshape that leaves the dimension with pieces as it is."""
        fused, result = self.fused[operation.operands[0]], shape_of(operation.results[0])
        for before, behind in factors(fused.shape, result):
            if fused.split.dimension not in before:
                continue
            wide = [index for index in before if fused.shape[index] != 1]
            kept = [index for index in behind if result[index] != 1]
            if wide == [fused.split.dimension] and len(kept) == 1:
                split = _moved(fused.split, len(result), kept[0])
                return self._again(operation, [fused.value], split.shape(result, self.mesh), split, fused.weight)
        return None

    def _concatenated(self, operation: ir.Operation) -> Value | None:
        """Parts that are split along the dimension in which they follow each other: each device puts its pieces side by side."""
        dimension = ir.IntegerAttr(operation.attributes["dimension"]).value
        parts: list[Part] = []
        given: list[tuple[Value, tuple[str, ...]]] = []
        for operand in operation.operands:
            fused, sharding = self.fused.get(operand), self.of(operand)
            if any(axes for index, axes in enumerate(sharding.dimensions) if index != dimension):
                return None
            axes = sharding.dimensions[dimension] if sharding.dimensions else ()
            size = shape_of(operand)[dimension]
            parts += fused.split.parts if fused is not None else [Part(size, axes)]
            given.append((operand, axes))
        split = _split(parts, len(shape_of(operation.results[0])), dimension)
        if any(split.axes[: len(part.axes)] != part.axes for part in parts) or split.sharding.replicated:
            return None
        with ir.InsertionPoint(operation), operation.location:
            made = self._side_by_side(given, split)
        self.fuse(made, split)
        return made

    # -- what they are made of -----------------------------------------------------------------------------------------

    def _side_by_side(self, parts: Sequence[tuple[Value, tuple[str, ...]]], split: Split) -> Value:
        """Values, each split by its axes along the dimension, as each device concatenates its pieces of them."""
        rank = len(shape_of(parts[0][0]))
        shape = list(shape_of(parts[0][0]))
        shape[split.dimension] = sum(part.size for part in split.parts)
        type_ = _typed(split.shape(shape, self.mesh), parts[0][0])
        operands = [(value, along(rank, split.dimension, axes)) for value, axes in parts]
        (made,) = manual(
            operands,
            [(type_, split.sharding)],
            self.mesh,
            lambda values: [stablehlo.concatenate(values, split.dimension)],
        )
        return made

    def _cut(self, value: Value, split: Split) -> Value:
        """Each device's pieces of a value that all of them have."""
        dimension = split.dimension
        type_ = _typed(split.shape(shape_of(value), self.mesh), value)

        def body(values: list[Value]) -> list[Value]:
            pieces, begin = [], 0
            for part in split.parts:
                matrix = _slice(values[0], dimension, begin, begin + part.size)
                pieces.append(self._collectives.part(matrix, dimension, part.axes))
                begin += part.size
            return [stablehlo.concatenate(pieces, dimension)]

        (made,) = manual([(value, REPLICATED)], [(type_, split.sharding)], self.mesh, body)
        return made

    def _filled(self, value: Value, split: Split) -> Value | None:
        """A value all of whose elements are one, with as many of them as there are in pieces; None where they may differ."""
        owner = value.owner
        if isinstance(owner, ir.Block):
            return None
        type_ = _typed(split.shape(shape_of(value), self.mesh), value)
        if owner.name == "stablehlo.constant":
            elements = ir.DenseElementsAttr(owner.attributes["value"])
            if elements.is_splat:
                return stablehlo.constant(ir.DenseElementsAttr.get_splat(type_, elements.get_splat_value()))
        if owner.name == "stablehlo.broadcast_in_dim" and math.prod(shape_of(owner.operands[0])) == 1:
            return stablehlo.broadcast_in_dim(
                type_, owner.operands[0], ir.DenseI64ArrayAttr(owner.attributes["broadcast_dimensions"])
            )
        return None

    def _again(
        self, operation: ir.Operation, operands: Sequence[Value], shape: Sequence[int], split: Split, weight: str | None
    ) -> Value:
        """The op with other operands and a result of another shape, which has pieces."""
        attributes: dict[str, Any] = {one.name: one.attr for one in operation.attributes}  # type: ignore[attr-defined]
        made = ir.Operation.create(
            operation.name, [_typed(shape, operation.results[0])], list(operands), attributes
        ).results[0]
        self.fuse(made, split, weight)
        return made


def _split(parts: Sequence[Part], rank: int, dimension: int) -> Split:
    """Pieces along the axes of the part that has the most; of one part alone, or of parts that are whole, it is no fused value."""
    axes: tuple[str, ...] = max((part.axes for part in parts), key=len)
    return Split(along(rank, dimension, axes), dimension, tuple(parts) if len(parts) > 1 and axes else ())


def _moved(split: Split, rank: int, dimension: int) -> Split:
    """The same pieces along another dimension."""
    return Split(along(rank, dimension, split.axes), dimension, split.parts)


def _slice(value: Value, dimension: int, start: int, end: int) -> Value:
    shape = list(shape_of(value))
    starts, limits = [0] * len(shape), list(shape)
    starts[dimension], limits[dimension] = start, end
    bounds = (starts, limits, [1] * len(shape))
    return stablehlo.slice(value, *(ir.DenseI64ArrayAttr.get(one) for one in bounds))


def _typed(shape: Sequence[int], like: Value) -> ir.Type:
    return ir.RankedTensorType.get(list(shape), ir.RankedTensorType(like.type).element_type)
