"""How `fxhlo.ragged_paged_attention` runs on a mesh: a device attends with its heads to its part of the cache."""

from __future__ import annotations

from collections.abc import Mapping

from ...runtime.core.mesh import Mesh
from ..partition import Lying, Partition, along, by_heads


def partition(operands: Mapping[str, Lying], mesh: Mesh) -> Partition:
    """kv_cache [blocks, tokens, 2 * heads, size]: split along its heads, and alibi_slopes as sinks are."""
    heads = operands["kv_cache"].axes(2)
    given = by_heads(operands, heads)
    given |= {"kv_cache": along(4, 2, heads), "alibi_slopes": given["sinks"]}
    return Partition((given["query"], given["kv_cache"]), given)
