"""Plan: how the weights and states of a program lie on a mesh, by their names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ...runtime.core import mesh as meshes
from ...runtime.core.mesh import Mesh
from ...runtime.core.sharding import REPLICATED, Sharding, Split
from ...runtime.core.targets import Target

NEXT_STEP = "leave out --tensor-parallel-size"
"""Of errors: what a mesh cannot do, one device can."""


@dataclass(frozen=True)
class Plan:
    """weights, states: how each is split; those not named are whole on every device. rows: between products that XLA partitions,
    tokens are split over the devices where each gets at least so many (sequence parallelism); None: never.
    """

    mesh: Mesh = meshes.ONE_DEVICE
    weights: Mapping[str, Split] = field(default_factory=dict)
    states: Mapping[str, Sharding] = field(default_factory=dict)
    rows: int | None = None

    def sharding(self, name: str) -> Sharding:
        """Of an argument, as the program takes it."""
        return self.weights[name].sharding if name in self.weights else self.states.get(name, REPLICATED)

    def at(self, first: int) -> Plan:
        """The same on devices from number `first` on."""
        return replace(self, mesh=replace(self.mesh, first=first))

    def copies(self, name: str) -> int:
        """How many devices have the same part of an argument."""
        return self.mesh.devices // self.sharding(name).parts(self.mesh)

    @property
    def cache_copies(self) -> int:
        """How many devices have the same part of the states, of the one that has the most."""
        return max((self.copies(name) for name in self.states), default=1)

    def to_json(self) -> dict[str, object]:
        """For a cache's key."""
        weights = {
            name: [split.sharding.to_json(), split.dimension, [[part.size, list(part.axes)] for part in split.parts]]
            for name, split in self.weights.items()
        }
        states = {name: sharding.to_json() for name, sharding in self.states.items()}
        return {"mesh": self.mesh.to_json(), "weights": weights, "states": states, "rows": self.rows}


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
