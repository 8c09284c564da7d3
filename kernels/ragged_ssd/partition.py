"""How `fxhlo.ragged_ssd` runs on a mesh: a device has some of the heads, and the groups that they read."""

from __future__ import annotations

from collections.abc import Mapping

from ...runtime.core.mesh import Mesh
from ..partition import Lying, Partition, along, by_groups


def partition(operands: Mapping[str, Lying], mesh: Mesh) -> Partition:
    """state [slots, H, P, N]: split along H, and so is everything with heads."""
    heads = operands["state"].axes(1)
    groups, shared = by_groups(operands, ("b", "c"), "x", heads, mesh)
    given = {"x": along(3, 1, heads), "dt": along(2, 1, heads), "state": along(4, 1, heads), **groups}
    given |= {name: along(1, 0, heads) for name in ("a", "d", "dt_bias")}
    return Partition((given["x"], given["state"]), given, shared=shared)
