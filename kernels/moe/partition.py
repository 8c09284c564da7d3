"""How `fxhlo.moe` runs on a mesh: by the hidden units of each expert, or by whole experts."""

from __future__ import annotations

from collections.abc import Mapping

from ...runtime.core.mesh import Mesh
from ...runtime.core.sharding import REPLICATED
from ..partition import Lying, Partition, along


def partition(operands: Mapping[str, Lying], mesh: Mesh) -> Partition:
    """w13 [E, 2 F, D], w2 [E, D, F]: split along F, or along E; the devices' results are added up."""
    experts = operands["w2"].axes(0)
    if experts:
        ranks = {"w13": 3, "w2": 3, "w13_bias": 2, "w2_bias": 2}
        given = {name: along(rank, 0, experts) for name, rank in ranks.items()}
        return Partition((REPLICATED,), given, summed=experts, counted={"topk_ids": "w2"})
    units = operands["w2"].axes(2)
    if not units:
        return Partition((REPLICATED,))
    given = {"w13": along(3, 1, units), "w2": along(3, 2, units), "w13_bias": along(2, 1, units)}
    return Partition((REPLICATED,), given, summed=units, once=("w2_bias",), pieces=("w13", "w13_bias"))
