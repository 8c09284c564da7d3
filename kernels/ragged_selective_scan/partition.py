"""How `fxhlo.ragged_selective_scan` runs on a mesh: a device has some of the channels."""

from __future__ import annotations

from collections.abc import Mapping

from ...runtime.core.mesh import Mesh
from ..partition import Lying, Partition, along


def partition(operands: Mapping[str, Lying], mesh: Mesh) -> Partition:
    """state [slots, D, N]: split along D, and so is everything with channels; b and c [T, N] are of all channels."""
    channels = operands["state"].axes(1)
    given = {
        "x": along(2, 1, channels),
        "dt": along(2, 1, channels),
        "a": along(2, 0, channels),
        "d": along(1, 0, channels),
        "dt_bias": along(1, 0, channels),
        "state": along(3, 1, channels),
    }
    return Partition((given["x"], given["state"]), given)
