"""Partition rules: how a call of a kernel runs on a mesh, where every device calls it with its part of each operand.

Comes in: how the operands lie on the mesh. Goes out: a `Partition`, which says how they must lie, how the results do, and whether the
devices' results are added up. A kernel declares its rule beside its implementations (docs/meshes.md); one without is refused on a mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..runtime.core.mesh import Mesh
from ..runtime.core.sharding import REPLICATED, Sharding


@dataclass(frozen=True)
class Lying:
    """How an operand lies on the mesh before the call.

    parts: how many parts of equal size its last dimension holds, each of which is split by itself: a device has its piece of the
    first, then its piece of the second. 1: the dimension is split as a whole.
    """

    shape: tuple[int, ...]
    sharding: Sharding = REPLICATED
    parts: int = 1

    def axes(self, dimension: int) -> tuple[str, ...]:
        """The axes that split a dimension, which may be counted from the end."""
        return () if self.sharding.replicated else self.sharding.dimensions[dimension]


@dataclass(frozen=True)
class Partition:
    """How one call runs on a mesh.

    operands: how they must lie, by name; those left out are whole on every device. results: in order. summed: the axes over
    which the devices' results are added up. once: operands that count once in that sum: on all devices but the first along
    `summed`, zeros stand in their place. pieces: operands that may hold a piece of each of several matrices on every device, as
    fused weights and products with them do; any other operand is in the model's order. counted: operands of integers that name
    entries of another operand's first dimension, by both names: a device counts from its own first entry, and the kernel ignores
    integers that are none of its entries.
    """

    results: tuple[Sharding, ...]
    operands: Mapping[str, Sharding] = field(default_factory=dict)
    summed: tuple[str, ...] = ()
    once: tuple[str, ...] = ()
    pieces: tuple[str, ...] = ()
    counted: Mapping[str, str] = field(default_factory=dict)


Rule = Callable[[Mapping[str, Lying], Mesh], Partition]
"""(the operands that are there, by the schema's names; the mesh) -> how the call runs."""


def replicated(results: int = 1) -> Rule:
    """The rule of a kernel that every device calls with the whole operands."""

    def rule(operands: Mapping[str, Lying], mesh: Mesh) -> Partition:
        return Partition((REPLICATED,) * results)

    return rule


def along(rank: int, dimension: int, axes: tuple[str, ...]) -> Sharding:
    """A tensor of `rank` dimensions, one of which is split."""
    return Sharding(tuple(axes if one == dimension % rank else () for one in range(rank)))


def by_heads(operands: Mapping[str, Lying], heads: tuple[str, ...]) -> dict[str, Sharding]:
    """Query, key and value [T, heads, size] and sinks [heads] of an attention. heads: the axes that split the keys' heads; the query's may be
    split further, by axes along which the keys are copied: where there are more devices than heads of keys."""
    split = operands["query"].axes(1)
    queries = split if split[: len(heads)] == heads else heads
    keys = along(3, 1, heads)
    return {"query": along(3, 1, queries), "key": keys, "value": keys, "sinks": along(1, 0, queries)}
