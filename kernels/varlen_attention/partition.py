"""How `fxhlo.varlen_attention` runs on a mesh: a device has some of the heads."""

from __future__ import annotations

from collections.abc import Mapping

from ...runtime.core.mesh import Mesh
from ..partition import Lying, Partition, by_heads


def partition(operands: Mapping[str, Lying], mesh: Mesh) -> Partition:
    """key [T, heads, size]: split along its heads."""
    given = by_heads(operands, operands["key"].axes(1))
    return Partition((given["query"],), given)
