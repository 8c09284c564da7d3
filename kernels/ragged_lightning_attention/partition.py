"""How `fxhlo.ragged_lightning_attention` runs on a mesh: a device has some of the heads."""

from __future__ import annotations

from collections.abc import Mapping

from ...runtime.core.mesh import Mesh
from ..partition import Lying, Partition, along


def partition(operands: Mapping[str, Lying], mesh: Mesh) -> Partition:
    """state [slots, H, V, K]: split along H, and so is everything else."""
    heads = operands["state"].axes(1)
    rows = along(3, 1, heads)
    given = {"q": rows, "k": rows, "v": rows, "slopes": along(1, 0, heads), "state": along(4, 1, heads)}
    return Partition((rows, given["state"]), given)
