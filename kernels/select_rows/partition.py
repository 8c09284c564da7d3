"""How `fxhlo.select_rows` runs on a mesh: a device selects rows of the columns that it has."""

from __future__ import annotations

from collections.abc import Mapping

from ...runtime.core.mesh import Mesh
from ...runtime.core.sharding import REPLICATED
from ..partition import Lying, Partition


def partition(operands: Mapping[str, Lying], mesh: Mesh) -> Partition:
    """values [T, ...]: split along any dimension but the first."""
    values = operands["values"]
    sharding = REPLICATED if values.axes(0) else values.sharding
    return Partition((sharding,), {"values": sharding})
