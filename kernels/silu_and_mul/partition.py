"""How `fxhlo.silu_and_mul` runs on a mesh: a device has its piece of the gate beside its piece of the other half."""

from __future__ import annotations

from collections.abc import Mapping

from ...runtime.core.mesh import Mesh
from ...runtime.core.sharding import REPLICATED
from ..partition import Lying, Partition


def partition(operands: Mapping[str, Lying], mesh: Mesh) -> Partition:
    """values [..., 2 K]: split along the last dimension only where each half is split by itself."""
    values = operands["values"]
    if values.parts == 2:
        return Partition((values.sharding,), {"values": values.sharding}, pieces=("values",))
    sharding = REPLICATED if values.axes(-1) else values.sharding
    return Partition((sharding,), {"values": sharding})
