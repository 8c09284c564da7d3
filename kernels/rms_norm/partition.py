"""How `fxhlo.rms_norm` runs on a mesh: a device normalizes the rows, or the heads, that it has."""

from __future__ import annotations

from collections.abc import Mapping

from ...runtime.core.mesh import Mesh
from ...runtime.core.sharding import REPLICATED
from ..partition import Lying, Partition


def partition(operands: Mapping[str, Lying], mesh: Mesh) -> Partition:
    """values [..., K]: split along any dimension but the last, over which the mean is taken."""
    values = operands["values"]
    sharding = REPLICATED if values.axes(-1) else values.sharding
    return Partition((sharding,), {"values": sharding})
