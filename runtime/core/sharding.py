"""Sharding: how one tensor lies on a mesh, as Shardy says it: for each dimension the axes that split it.

Comes in: axes per dimension, or the JSON of a manifest. Goes out: a frozen `Sharding`. Guaranteed: no axis splits two dimensions.
https://github.com/openxla/shardy/blob/main/docs/sharding_representation.md
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import SignatureError
from .mesh import Mesh


@dataclass(frozen=True)
class Sharding:
    """The axes of each dimension, major to minor: `(("data",), (), ("kv", "rep"))` is Shardy's [{"data"}, {}, {"kv", "rep"}].

    Empty: every device has all of the tensor, whatever its rank. Raises SignatureError where an axis occurs twice.
    """

    dimensions: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        dimensions = tuple(tuple(axes) for axes in self.dimensions)
        object.__setattr__(self, "dimensions", dimensions if any(dimensions) else ())  # one form of "replicated"
        axes = [axis for dimension in self.dimensions for axis in dimension]
        if len(set(axes)) < len(axes):
            raise SignatureError(f"the sharding {self} splits two dimensions by one axis")

    @property
    def replicated(self) -> bool:
        return not self.dimensions

    def shard(self, shape: Sequence[int], mesh: Mesh) -> tuple[int, ...]:
        """The shape that one device holds of a tensor of `shape`.

        Raises SignatureError where the ranks differ, the mesh lacks an axis, or a dimension does not divide evenly.
        """
        if self.replicated:
            return tuple(shape)
        if len(self.dimensions) != len(shape):
            raise SignatureError(
                f"the sharding {self} has {len(self.dimensions)} dimensions and the tensor {list(shape)} {len(shape)}"
            )
        local = []
        for size, axes in zip(shape, self.dimensions, strict=True):
            for axis in axes:
                if size % mesh.size(axis):
                    raise SignatureError(
                        f"the sharding {self} splits {list(shape)} unevenly: {axis} has {mesh.size(axis)} devices",
                        next_step="pad the dimension, or leave it unsharded",
                    )
                size //= mesh.size(axis)
            local.append(size)
        return tuple(local)

    def to_json(self) -> list[list[str]]:
        """[["data"], []]; `from_json` gives an equal sharding."""
        return [list(axes) for axes in self.dimensions]

    @staticmethod
    def from_json(data: object) -> Sharding:
        """Raises SignatureError where `data` is not what `to_json` gives."""
        if not isinstance(data, list) or not all(
            isinstance(axes, list) and all(isinstance(axis, str) for axis in axes) for axes in data
        ):
            raise SignatureError(f"sharding is {data!r}, not a list of axes for each dimension")
        return Sharding(tuple(tuple(axes) for axes in data))

    def __str__(self) -> str:
        if self.replicated:
            return "replicated"
        return "[" + ", ".join("{" + ", ".join(f'"{axis}"' for axis in axes) + "}" for axes in self.dimensions) + "]"


REPLICATED = Sharding()
