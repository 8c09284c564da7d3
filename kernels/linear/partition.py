"""How `fxhlo.linear` runs on a mesh: by the outputs or by the inputs that its weight is split along."""

from __future__ import annotations

from collections.abc import Mapping

from ...runtime.core.mesh import Mesh
from ...runtime.core.sharding import REPLICATED
from ..partition import Lying, Partition, along


def partition(operands: Mapping[str, Lying], mesh: Mesh) -> Partition:
    """weight [N, K]: split along N, each device computes its columns of the result; along K, the devices' products are added up."""
    weight = operands["weight"]
    outputs, inputs = weight.axes(0), weight.axes(1)
    if inputs:
        given = {"values": along(2, 1, inputs), "weight": weight.sharding}
        return Partition((REPLICATED,), given, summed=inputs, once=("bias",))
    if outputs:
        given = {"weight": weight.sharding, "bias": along(1, 0, outputs)}
        return Partition((along(2, 1, outputs),), given, pieces=("weight", "bias"), results_in_pieces=(0,))
    return Partition((REPLICATED,))
