"""How `fxhlo.ragged_causal_conv1d` runs on a mesh: a device has some of the channels."""

from __future__ import annotations

from collections.abc import Mapping

from ...runtime.core.mesh import Mesh
from ..partition import Lying, Partition, along


def partition(operands: Mapping[str, Lying], mesh: Mesh) -> Partition:
    """weight [C, K]: split along C, and so is everything with channels."""
    channels = operands["weight"].axes(0)
    given = {
        "values": along(2, 1, channels),
        "weight": along(2, 0, channels),
        "bias": along(1, 0, channels),
        "state": along(3, 2, channels),
    }
    pieces = ("weight", "values", "bias", "state")
    return Partition((given["values"], given["state"]), given, pieces=pieces, results_in_pieces=(0, 1))
