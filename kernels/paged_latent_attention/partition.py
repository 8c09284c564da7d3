"""How `fxhlo.ragged_paged_latent_attention` runs on a mesh: a device has some of the heads, and the whole cache, which all heads share."""

from __future__ import annotations

from collections.abc import Mapping

from ...runtime.core.mesh import Mesh
from ...runtime.core.sharding import REPLICATED
from ..partition import Lying, Partition, along


def partition(operands: Mapping[str, Lying], mesh: Mesh) -> Partition:
    """w_uk [N, P, L], w_uv [N, L, V]: split along their heads, and so is query [T, N, P + R]."""
    axes = operands["w_uk"].axes(0)
    heads, projection = along(3, 1, axes), along(3, 0, axes)
    return Partition((heads, REPLICATED), {"query": heads, "w_uk": projection, "w_uv": projection})
