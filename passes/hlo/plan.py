"""Plan: how the weights and states of a program lie on a mesh, by their names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import lcm, prod

from ...runtime.core import mesh as meshes
from ...runtime.core.mesh import Mesh
from ...runtime.core.sharding import Sharding, Split
from ...runtime.core.targets import Target

NEXT_STEP = "leave out --tensor-parallel-size"
"""Of errors: what a mesh cannot do, one device can."""
WHOLE = Split()
HOST = Target("cpu")


@dataclass(frozen=True)
class Plan:
    """weights, states: how each is split; those not named are whole on every device. rows: between products that XLA partitions,
    tokens are split over the devices where each gets at least so many (sequence parallelism); None: never.
    """

    mesh: Mesh = meshes.ONE_DEVICE
    weights: Mapping[str, Split] = field(default_factory=dict)
    states: Mapping[str, Split] = field(default_factory=dict)
    rows: int | None = None

    def split(self, name: str) -> Split:
        """Of an argument: a weight's, a state's, or none at all."""
        return self.weights.get(name) or self.states.get(name, WHOLE)

    def sharding(self, name: str) -> Sharding:
        """Of an argument, as the program takes it."""
        return self.split(name).sharding

    def shape(self, name: str, shape: Sequence[int]) -> tuple[int, ...]:
        """Of an argument, as the program takes it. shape: the model's. Raises SignatureError where the devices do not divide it."""
        return self.split(name).shape(shape, self.mesh)

    def blocks(self, count: int) -> int:
        """So many blocks of a cache, or some more that the devices divide."""
        parts = [
            prod(map(self.mesh.size, one.sharding.dimensions[0]))
            for one in self.states.values()
            if one.sharding.dimensions
        ]
        return -(-count // lcm(*parts)) * lcm(*parts)

    def at(self, first: int) -> Plan:
        """The same on devices from number `first` on."""
        return replace(self, mesh=replace(self.mesh, first=first))

    def copies(self, name: str) -> int:
        """How many devices have the same part of an argument."""
        return self.mesh.devices // self.sharding(name).parts(self.mesh)

    def bytes(self, name: str, shape: Sequence[int], itemsize: int, target: Target = HOST) -> int:
        """What an argument takes on all devices together, as the target's memory lays out a row-major one. shape: the model's."""
        held = self.sharding(name).shard(self.shape(name, shape), self.mesh)
        return target.array_bytes(held, itemsize) * self.mesh.devices

    def to_json(self) -> dict[str, object]:
        """For a cache's key."""
        tables = {"weights": self.weights, "states": self.states}
        splits = {kind: {name: _json(split) for name, split in table.items()} for kind, table in tables.items()}
        return {"mesh": self.mesh.to_json(), **splits, "rows": self.rows}


def _json(split: Split) -> list[object]:
    return [split.sharding.to_json(), split.dimension, [[part.size, list(part.axes)] for part in split.parts]]


ONE_DEVICE = Plan()


def rows_for(target: Target) -> int | None:
    """`Plan.rows` of a target; None: tokens stay whole.

    XLA for TPUs makes a loop of a product whose rows are split, and overlaps it with the sends. Each turn multiplies two devices' rows and
    reads the whole weight again; so it pays where these rows take the matrix units as long as their weight takes the memory (docs/meshes.md
    has the figures).
    """
    flops, bandwidth = target.flops("bfloat16"), target.bandwidth
    if target.family != "tpu" or not flops or not bandwidth:
        return None
    return math.ceil(flops / bandwidth / 2)
