"""How `fxhlo.ragged_gated_delta_rule` runs on a mesh: a device has some of the value heads, and the key heads that they read."""

from __future__ import annotations

from collections.abc import Mapping

from ...runtime.core.mesh import Mesh
from ..partition import Lying, Partition, along, by_groups


def partition(operands: Mapping[str, Lying], mesh: Mesh) -> Partition:
    """state [slots, H, V, K]: split along H, and so is everything with value heads."""
    heads = operands["state"].axes(1)
    groups, shared = by_groups(operands, ("q", "k"), "v", heads, mesh)
    rank = len(operands["g"].shape)
    given = {
        "v": along(3, 1, heads),
        "g": along(rank, 1, heads),
        "beta": along(2, 1, heads),
        "state": along(4, 1, heads),
        **groups,
    }
    return Partition((given["v"], given["state"]), given, shared=shared)
