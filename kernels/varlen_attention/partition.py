"""How `fxhlo.varlen_attention` runs on a mesh: a device has some of the heads."""

from __future__ import annotations

from collections.abc import Mapping

from ...runtime.core.mesh import Mesh
from ..partition import Lying, Partition, along


def partition(operands: Mapping[str, Lying], mesh: Mesh) -> Partition:
    """key [T, heads, size]: split along its heads. The query's may be split further, by axes along which the keys are copied."""
    heads = operands["key"].axes(1)
    split = operands["query"].axes(1)
    queries = split if split[: len(heads)] == heads else heads
    given = {
        "query": along(3, 1, queries),
        "key": along(3, 1, heads),
        "value": along(3, 1, heads),
        "sinks": along(1, 0, queries),
    }
    return Partition((given["query"],), given)
