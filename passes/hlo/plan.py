"""Plan: how the weights and states of a program lie on a mesh, by their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...runtime.core import mesh as meshes
from ...runtime.core.mesh import Mesh
from ...runtime.core.sharding import REPLICATED, Sharding, Split

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
