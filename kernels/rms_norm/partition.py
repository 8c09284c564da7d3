"""How `fxhlo.rms_norm` runs on a mesh: a device normalizes the rows, or the heads, that it has."""

from __future__ import annotations

from collections.abc import Mapping

from ...runtime.core.mesh import Mesh
from ..partition import Lying, Partition


def partition(operands: Mapping[str, Lying], mesh: Mesh) -> Partition:
    """values [..., K]: as they are split. Where that is along the last dimension, over which the mean is taken, the devices add up one number
    a row; the weight [K] is split as the values are."""
    values = operands["values"]
    given = {"values": values.sharding}
    return Partition((values.sharding,), given, plain=bool(values.axes(-1)))
