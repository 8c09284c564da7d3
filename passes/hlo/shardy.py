"""Shardy's attributes and ops for a `Mesh` and `Sharding`s: what a partitioned module is written with.

Comes in: values, shardings. Goes out: ops at the insertion point. https://github.com/openxla/shardy/blob/main/docs/sdy_dialect.md
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np

from ...runtime.core.mesh import Mesh
from ...runtime.core.sharding import Sharding
from ...runtime.core.signature import Argument, Result, Signature
from ..mlir import ir, sdy, stablehlo

Value = ir.Value[Any]
MESH = "mesh"
"""The symbol of the module's mesh."""


def declare(module: ir.Module, mesh: Mesh) -> None:
    """Adds the mesh to the module, which all shardings name."""
    with ir.InsertionPoint.at_block_begin(module.body):
        sdy.MeshOp(MESH, sdy.MeshAttr.get([sdy.MeshAxisAttr.get(name, size) for name, size in mesh.axes]))


def attribute(sharding: Sharding, rank: int) -> ir.Attribute:
    """`#sdy.sharding<@mesh, [...]>` of a tensor of `rank` dimensions."""
    dimensions = sharding.dimensions or ((),) * rank
    written = [sdy.DimensionShardingAttr.get([sdy.AxisRefAttr.get(axis) for axis in axes], True) for axes in dimensions]
    return sdy.TensorShardingAttr.get(MESH, written)


def annotate(module: ir.Module, signature: Signature) -> None:
    """Writes the signature's shardings to the arguments and results of `main`."""
    function = ir.SymbolTable(module.operation)["main"].operation
    tables: tuple[tuple[str, Sequence[Argument | Result]], ...] = (
        ("arg_attrs", signature.arguments),
        ("res_attrs", signature.results),
    )
    for name, entries in tables:
        written = []
        for entry, attributes in zip(entries, ir.ArrayAttr(function.attributes[name]), strict=True):
            found = {one.name: one.attr for one in ir.DictAttr(attributes)}  # type: ignore[attr-defined]
            written.append(ir.DictAttr.get({**found, "sdy.sharding": attribute(entry.sharding, len(entry.shape))}))
        function.attributes[name] = ir.ArrayAttr.get(written)


@contextmanager
def after(value: Value) -> Iterator[None]:
    """Inserts ops right after the one that makes the value; at the function's beginning, if it is an argument."""
    owner = value.owner
    if isinstance(owner, ir.Block):
        with ir.InsertionPoint.at_block_begin(owner), ir.Location.unknown():
            yield
    else:
        with ir.InsertionPoint.after(owner), owner.location:
            yield


def constrained(value: Value, sharding: Sharding) -> Value:
    """The value, lying as `sharding` says."""
    return constraint(value, sharding).result


def constraint(value: Value, sharding: Sharding) -> sdy.ShardingConstraintOp:
    """The op that makes a value lie as `sharding` says."""
    return sdy.ShardingConstraintOp(value, attribute(sharding, ir.RankedTensorType(value.type).rank))


def local_type(type_: ir.Type, sharding: Sharding, mesh: Mesh) -> ir.Type:
    """The type of one device's part."""
    ranked = ir.RankedTensorType(type_)
    return ir.RankedTensorType.get(sharding.shard(ranked.shape, mesh), ranked.element_type)


def manual(
    operands: Sequence[tuple[Value, Sharding]],
    results: Sequence[tuple[ir.Type, Sharding]],
    mesh: Mesh,
    body: Callable[[list[Value]], Sequence[Value]],
) -> list[Value]:
    """A region that each device runs with its parts. results: types of the whole tensors. body: from local values to local values."""
    made = sdy.ManualComputationOp(
        [type_ for type_, _ in results],
        [value for value, _ in operands],
        _per_value([(value.type, sharding) for value, sharding in operands]),
        _per_value(results),
        sdy.ManualAxesAttr.get([ir.StringAttr.get(name) for name, _ in mesh.axes]),
    )
    block = made.body.blocks.append(*[local_type(value.type, sharding, mesh) for value, sharding in operands])
    with ir.InsertionPoint(block):
        sdy.ReturnOp(list(body(list(block.arguments))))
    return list(made.results)


def _per_value(values: Sequence[tuple[ir.Type, Sharding]]) -> ir.Attribute:
    return sdy.TensorShardingPerValueAttr.get(
        [attribute(sharding, ir.RankedTensorType(type_).rank) for type_, sharding in values]
    )


class Collectives:
    """The collectives inside manual regions of one module; each gets a channel of its own."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._channels = count(1)

    def sum(self, value: Value, axes: Sequence[str]) -> Value:
        """The sum of the devices' values over `axes`."""
        return self._reduced(value, axes, stablehlo.add)

    def most(self, value: Value, axes: Sequence[str]) -> Value:
        """The largest of the devices' values over `axes`."""
        return self._reduced(value, axes, stablehlo.maximum)

    def _reduced(self, value: Value, axes: Sequence[str], combine: Callable[..., Value]) -> Value:
        type_ = ir.RankedTensorType(value.type)
        groups = np.array(self.mesh.groups(axes), np.int64)
        made = stablehlo.AllReduceOp(
            [type_],
            [value],
            ir.DenseIntElementsAttr.get(groups),  # type: ignore[call-overload]  # an array is a buffer, from Python 3.12 on
            channel_handle=stablehlo.ChannelHandle.get(next(self._channels), 1),
            use_global_device_ids=True,
        )
        scalar = ir.RankedTensorType.get([], type_.element_type)
        block = made.computation.blocks.append(scalar, scalar)
        with ir.InsertionPoint(block):
            stablehlo.ReturnOp([combine(*block.arguments)])
        return made.results[0]

    def gather(self, value: Value, dimension: int, axes: Sequence[str]) -> Value:
        """The devices' values over `axes`, one after the other along a dimension."""
        type_ = ir.RankedTensorType(value.type)
        groups = np.array(self.mesh.groups(axes), np.int64)
        shape = list(type_.shape)
        shape[dimension] *= groups.shape[1]
        made = stablehlo.AllGatherOp(
            [ir.RankedTensorType.get(shape, type_.element_type)],
            [value],
            dimension,
            ir.DenseIntElementsAttr.get(groups),  # type: ignore[call-overload]  # an array is a buffer, from Python 3.12 on
            channel_handle=stablehlo.ChannelHandle.get(next(self._channels), 1),
            use_global_device_ids=True,
        )
        return made.results[0]

    def once(self, value: Value, axes: Sequence[str]) -> Value:
        """The value on the first device along `axes`, and zeros on the others."""
        first = {group[0] for group in self.mesh.groups(axes)}
        bit = ir.IntegerType.get_signless(1)
        found = self._of_device([ir.BoolAttr.get(device in first) for device in range(self.mesh.devices)], bit)
        type_ = ir.RankedTensorType(value.type)
        zero = stablehlo.constant(ir.DenseElementsAttr.get_splat(type_, _zero(type_.element_type)))
        return stablehlo.select(found, value, zero)

    def counted(self, value: Value, size: int, axes: Sequence[str]) -> Value:
        """Integers (int32) that name entries of a dimension of `size` that is split by `axes`, counted from the device's own first entry."""
        type_ = ir.RankedTensorType(value.type)
        start = stablehlo.broadcast_in_dim(type_, self.start(size, axes), ir.DenseI64ArrayAttr.get([]))
        return stablehlo.subtract(value, start)

    def start(self, size: int, axes: Sequence[str]) -> Value:
        """The number of the device's first entry of a dimension of `size` that is split by `axes`, int32 []."""
        integer = ir.IntegerType.get_signless(32)
        return self._of_device([ir.IntegerAttr.get(integer, one) for one in self._starts(size, axes)], integer)

    def _starts(self, size: int, axes: Sequence[str]) -> list[int]:
        """Each device's first entry of a dimension of `size` that is split by `axes`."""
        spread = Sharding((tuple(axes),))
        return [spread.index((size,), self.mesh, device)[0].start for device in range(self.mesh.devices)]

    def of_heads(self, value: Value, groups: int, heads: int, axes: Sequence[str]) -> Value:
        """Of values [T, all groups, ...], which `heads` heads share that are split by `axes`, the `groups` that the device's own heads read."""
        every = ir.RankedTensorType(value.type).shape[1]
        return self._sliced(value, 1, groups, [first * every // heads for first in self._starts(heads, axes)])

    def part(self, value: Value, dimension: int, axes: Sequence[str]) -> Value:
        """The device's part of a value that all have whole, along a dimension that is split by `axes`."""
        if not axes:
            return value
        size = ir.RankedTensorType(value.type).shape[dimension]
        (own,) = Sharding((tuple(axes),)).shard((size,), self.mesh)
        return self._sliced(value, dimension, own, self._starts(size, axes))

    def _sliced(self, value: Value, dimension: int, size: int, starts: Sequence[int]) -> Value:
        """`size` entries of a dimension, from the device's own start on."""
        integer, sizes = ir.IntegerType.get_signless(32), list(ir.RankedTensorType(value.type).shape)
        sizes[dimension] = size
        start = self._of_device([ir.IntegerAttr.get(integer, one) for one in starts], integer)
        zero = stablehlo.constant(ir.DenseElementsAttr.get_splat(start.type, ir.IntegerAttr.get(integer, 0)))
        indices = [start if index == dimension else zero for index in range(len(sizes))]
        return stablehlo.dynamic_slice(value, indices, ir.DenseI64ArrayAttr.get(sizes))

    def _of_device(self, values: Sequence[ir.Attribute], element: ir.Type) -> Value:
        """This device's entry of a table, 0-d."""
        type_ = ir.RankedTensorType.get([self.mesh.devices], element)
        table = stablehlo.constant(ir.DenseElementsAttr.get(values, type_))
        one = stablehlo.dynamic_slice(table, [stablehlo.partition_id()], ir.DenseI64ArrayAttr.get([1]))
        return stablehlo.reshape(ir.RankedTensorType.get([], element), one)


def _zero(element: ir.Type) -> ir.Attribute:
    return ir.FloatAttr.get(element, 0.0) if isinstance(element, ir.FloatType) else ir.IntegerAttr.get(element, 0)
