"""How `fxhlo.ragged_paged_latent_attention` runs on a mesh: a device has some of the heads, and the whole cache, which all heads share."""

from __future__ import annotations

from collections.abc import Mapping

from ...runtime.core.mesh import Mesh
from ...runtime.core.sharding import REPLICATED
from ..partition import Lying, Partition, along


def partition(operands: Mapping[str, Lying], mesh: Mesh) -> Partition:
    """query [T, N, D]: split along its heads."""
    heads = along(3, 1, operands["query"].axes(1))
    return Partition((heads, REPLICATED), {"query": heads})
