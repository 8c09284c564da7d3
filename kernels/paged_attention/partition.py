"""How `fxhlo.ragged_paged_attention` runs on a mesh: a device attends with its heads to its part of the cache."""

from __future__ import annotations

from collections.abc import Mapping

from ...runtime.core.mesh import Mesh
from ..partition import Lying, Partition, along


def partition(operands: Mapping[str, Lying], mesh: Mesh) -> Partition:
    """kv_cache [blocks, tokens, 2 * heads, size]: split along its heads. The query's heads may be split further, by axes along which
    the cache is copied: where there are more devices than heads of keys."""
    heads = operands["kv_cache"].axes(2)
    split = operands["query"].axes(1)
    queries = split if split[: len(heads)] == heads else heads
    given = {
        "query": along(3, 1, queries),
        "key": along(3, 1, heads),
        "value": along(3, 1, heads),
        "kv_cache": along(4, 2, heads),
        "sinks": along(1, 0, queries),
        "alibi_slopes": along(1, 0, queries),
    }
    return Partition((given["query"], given["kv_cache"]), given)
