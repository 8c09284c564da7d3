"""How `fxhlo.ragged_paged_latent_attention` runs on a mesh: a device has some of the heads, and the cache that all heads share: the
whole of it, or that of some requests."""

from __future__ import annotations

from collections.abc import Mapping

from ...runtime.core.mesh import Mesh
from ..partition import Lying, Partition, along


def partition(operands: Mapping[str, Lying], mesh: Mesh) -> Partition:
    """w_uk [N, P, L], w_uv [N, L, V]: split along their heads, and so is query [T, N, P + R]; kv_cache: along its blocks, if at all."""
    axes, requests = operands["w_uk"].axes(0), operands["kv_cache"].axes(0)
    heads, projection, cache = along(3, 1, axes), along(3, 0, axes), along(3, 0, requests)
    given = {"query": heads, "w_uk": projection, "w_uv": projection, "kv_cache": cache}
    return Partition((heads, cache), given, requests=requests)
