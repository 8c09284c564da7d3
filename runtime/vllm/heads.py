"""The mesh that so many devices make, by a model's numbers of heads: of layers that are there, or as its config says before there are any.

Comes in: numbers of heads of queries and of keys, and how the devices share them. Goes out: the mesh. Guaranteed: what no mesh divides is an
UnsupportedError. Imports nothing of vLLM's.
"""

from __future__ import annotations

from collections.abc import Collection

from ...kernels.partition import REQUESTS
from ..core.errors import UnsupportedError
from ..core.mesh import ONE_DEVICE, Mesh

CONTEXT = "context"
"""The axis along which devices have other blocks of the same heads' cache."""


def mesh_of(devices: int, queries: Collection[int], keys: Collection[int], context: int = 1, requests: int = 1) -> Mesh:
    """The mesh for layers with these numbers of heads: one axis; two where there are more devices than heads of keys, which are then copied
    along `rep`. context: so many of these copies have the cache's blocks between them, along an axis of that name. requests: so many groups
    of devices have the caches of other requests, along an axis of that name; heads of keys are split within a group.

    Raises UnsupportedError where the devices do not divide the heads, or there are fewer copies.
    """
    if requests > 1:
        _check_queries(devices, queries)
        return Mesh((*mesh_of(devices // requests, queries, keys).axes, (REQUESTS, requests)))
    if devices == 1:
        return ONE_DEVICE
    _check_queries(devices, queries)
    fewer = sorted(count for count in set(keys) if count % devices)
    if not fewer and context == 1:
        return Mesh((("model", devices),))
    if not fewer:
        raise UnsupportedError(
            f"no two of {devices} devices have the same heads of keys, so that they have no cache to share",
            next_step="leave out --decode-context-parallel-size, or take a --tensor-parallel-size above the model's heads of keys",
        )
    if len(fewer) > 1 or devices % fewer[0]:
        told = ", ".join(map(str, fewer))
        raise UnsupportedError(
            f"{devices} devices do not divide the model's heads of keys ({told}), nor can each head be copied to as many devices",
            next_step=f"take a --tensor-parallel-size that divides {fewer[0]}, or a multiple of it",
        )
    copies = devices // fewer[0]
    if context == 1:
        return Mesh((("kv", fewer[0]), ("rep", copies)))
    if copies % context:
        raise UnsupportedError(
            f"{copies} of {devices} devices have the same heads of keys, which {context} do not divide",
            next_step=f"take a --decode-context-parallel-size that divides {copies}",
        )
    rest = (("rep", copies // context),) if copies > context else ()
    return Mesh((("kv", fewer[0]), *rest, (CONTEXT, context)))


def _check_queries(devices: int, queries: Collection[int]) -> None:
    """Raises UnsupportedError where the devices do not divide the heads of queries."""
    if undivided := sorted(count for count in set(queries) if count % devices):
        told = ", ".join(map(str, undivided))
        raise UnsupportedError(
            f"{devices} devices do not divide the model's heads ({told})",
            next_step=f"take a --tensor-parallel-size that divides {undivided[0]}",
        )
