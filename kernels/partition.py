"""Partition rules: how a call of a kernel runs on a mesh, where every device calls it with its part of each operand.

Comes in: how the operands lie on the mesh. Goes out: a `Partition`, which says how they must lie, how the results do, and whether the
devices' results are added up. A kernel declares its rule beside its implementations (docs/meshes.md); one without is refused on a mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod

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
    fused weights and products with them do: all of them in the pieces of the first that does, along the one dimension that
    `operands` splits; any other operand is in the model's order. results_in_pieces: the results that lie in these pieces too.
    counted: operands of integers that name entries of another operand's first dimension, by both names: a device counts from its
    own first entry, and the kernel ignores integers that are none of its entries. shared: operands [T, groups, ...] that are whole
    on every device, each group for as many heads of another operand [T, heads, ...], by both names: a device takes the groups that
    its own heads read. plain: no device calls the kernel: the reference stands in the module, and XLA partitions it, with the
    collectives that it takes. context: the axes of devices that attend to other keys: `Kernel.over_context` says what each does.
    requests: the axes of devices that have the caches of other requests: each calls the kernel with the rows of its own requests
    (kernels/requests.py), and the devices' rows are put together.
    """

    results: tuple[Sharding, ...]
    operands: Mapping[str, Sharding] = field(default_factory=dict)
    summed: tuple[str, ...] = ()
    once: tuple[str, ...] = ()
    pieces: tuple[str, ...] = ()
    results_in_pieces: tuple[int, ...] = ()
    counted: Mapping[str, str] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    plain: bool = False
    context: tuple[str, ...] = ()
    requests: tuple[str, ...] = ()


REQUESTS = "requests"
"""The axis along which devices have the caches of other requests, in blocks that follow each other (attention data parallelism)."""
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


def by_groups(
    operands: Mapping[str, Lying], names: tuple[str, ...], heads: str, axes: tuple[str, ...], mesh: Mesh
) -> tuple[dict[str, Sharding], dict[str, str]]:
    """How operands [T, groups, ...] lie whose groups serve the heads of another operand, which `axes` split: by groups where these axes
    divide them, and else whole on every device. Returns `operands` and `shared` of the Partition."""
    parts, given, shared = prod(mesh.size(axis) for axis in axes), {}, {}
    for name in names:
        shape = operands[name].shape
        if shape[1] % parts == 0:
            given[name] = along(len(shape), 1, axes)
        else:
            shared[name] = heads
    return given, shared


def groups_of_a_device(groups: int, heads: int, devices: int) -> int | None:
    """How many of `groups` the heads of one device read, which has a run of them; None where devices begin within groups at different places."""
    own, each = heads // devices, heads // groups
    return own // each if own % each == 0 else 1 if each % own == 0 else None
