"""How `fxhlo.ragged_paged_attention` runs on a mesh: a device attends with its heads to its part of the cache, which may be some of the blocks:
those of some requests, or some of every request's."""

from __future__ import annotations

from collections.abc import Mapping

from ...runtime.core.mesh import Mesh
from ...runtime.core.sharding import Sharding
from ..partition import REQUESTS, Lying, Partition, along, by_heads


def partition(operands: Mapping[str, Lying], mesh: Mesh) -> Partition:
    """kv_cache [blocks, tokens, 2 * heads, size]: split along its heads, and alibi_slopes as sinks are. Where it is split along its blocks
    too, devices that have other blocks of the same heads share these heads' rows, and merge what each attended to; or each attends
    with the rows of its own requests."""
    blocks, heads = operands["kv_cache"].axes(0), operands["kv_cache"].axes(2)
    given = by_heads(operands, heads)
    if blocks:
        own = (
            tuple(axis for axis in given["query"].dimensions[1] if axis not in blocks)
            if given["query"].dimensions
            else ()
        )
        given |= {"query": along(3, 1, own), "sinks": along(1, 0, own)}
    given |= {"kv_cache": Sharding((blocks, (), heads, ())), "alibi_slopes": given["sinks"]}
    results = (given["query"], given["kv_cache"])
    if blocks == (REQUESTS,):
        return Partition(results, given, requests=blocks)
    return Partition(results, given, context=blocks)
