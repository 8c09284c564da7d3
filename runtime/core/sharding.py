"""Sharding: how one tensor lies on a mesh, as Shardy says it: for each dimension the axes that split it.

Comes in: axes per dimension, or the JSON of a manifest. Goes out: a frozen `Sharding`. Guaranteed: no axis splits two dimensions.
https://github.com/openxla/shardy/blob/main/docs/sharding_representation.md
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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

    def parts(self, mesh: Mesh) -> int:
        """Into how many different parts the tensor is split; the mesh's devices beyond these hold copies."""
        return math.prod(mesh.size(axis) for dimension in self.dimensions for axis in dimension)

    def index(self, shape: Sequence[int], mesh: Mesh, device: int) -> tuple[slice, ...]:
        """Which part of a tensor of `shape` device number `device` holds. Raises SignatureError, as `shard` does."""
        local, place = self.shard(shape, mesh), mesh.place(device)
        found = []
        for size, axes in zip(local, self.dimensions or ((),) * len(local), strict=True):
            number = 0
            for axis in axes:
                number = number * mesh.size(axis) + place[axis]
            found.append(slice(number * size, (number + 1) * size))
        return tuple(found)

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


@dataclass(frozen=True)
class Part:
    """One of the matrices that are fused in a weight: its size along their dimension, and the axes that split it."""

    size: int
    axes: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """How a weight lies on a mesh. A model's weight of several matrices (query, key and value; gate and up) is arranged before it
    is placed, so that each device's piece has a piece of every one, in order.

    sharding: of the arranged weight. parts: the matrices along `dimension`; none: the weight is taken as it is. A part may be split
    by fewer axes than the weight (keys of few heads): its pieces are repeated, and the arranged weight is larger.
    """

    sharding: Sharding = REPLICATED
    dimension: int = 0
    parts: tuple[Part, ...] = ()

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes along the fused dimension."""
        return () if self.sharding.replicated else self.sharding.dimensions[self.dimension]

    def shape(self, shape: Sequence[int], mesh: Mesh) -> tuple[int, ...]:
        """The arranged shape of a weight of `shape`. Raises SignatureError where a matrix does not divide evenly."""
        if not self.parts:
            self.sharding.shard(shape, mesh)
            return tuple(shape)
        pieces = sum(along(part, mesh) for part in self.parts)
        found = list(shape)
        found[self.dimension] = pieces * math.prod(mesh.size(axis) for axis in self.axes)
        self.sharding.shard(found, mesh)
        return tuple(found)

    def arranged(self, array: np.ndarray, mesh: Mesh) -> np.ndarray:
        """The weight as it is placed. array: in the model's order."""
        if not self.parts:
            return array
        line = self._line(mesh)
        pieces = [matrix for number in range(line.devices) for matrix in self._pieces(array, line, number)]
        return np.concatenate(pieces, axis=self.dimension)

    def piece(self, array: np.ndarray, mesh: Mesh, device: int) -> np.ndarray:
        """What one device gets of the weight, contiguous; the others' pieces are not made. array: in the model's order."""
        if not self.parts:
            return np.ascontiguousarray(array[self.sharding.index(array.shape, mesh, device)])
        line = self._line(mesh)
        return np.concatenate(self._pieces(array, line, self._number(line, mesh, device)), axis=self.dimension)

    def stretches(self, shape: Sequence[int], mesh: Mesh, device: int) -> tuple[tuple[slice, ...], ...]:
        """What `piece` reads of a weight of `shape`, in the model's order: for each dimension the stretches along it, one of each matrix."""
        if not self.parts:
            return tuple((one,) for one in self.sharding.index(shape, mesh, device))
        line, first = self._line(mesh), 0
        number, found = self._number(line, mesh, device), []
        for part in self.parts:
            (piece,) = Sharding((part.axes,)).index((part.size,), line, number)
            found.append(slice(first + piece.start, first + piece.stop))
            first += part.size
        return tuple(tuple(found) if one == self.dimension else (slice(0, size),) for one, size in enumerate(shape))

    def restored(self, arranged: np.ndarray, mesh: Mesh) -> np.ndarray:
        """The weight in the model's order, of what `arranged` gave."""
        if not self.parts:
            return arranged
        line, shape = self._line(mesh), list(arranged.shape)
        shape[self.dimension] = sum(part.size for part in self.parts)
        found = np.empty(shape, arranged.dtype)
        for number, block in enumerate(np.split(arranged, line.devices, axis=self.dimension)):
            ends = np.cumsum([along(part, mesh) for part in self.parts])
            own = np.split(block, ends[:-1], axis=self.dimension)
            for view, values in zip(self._pieces(found, line, number), own, strict=True):
                view[...] = values
        return found

    def _line(self, mesh: Mesh) -> Mesh:
        """The devices along the fused dimension."""
        return Mesh(tuple((axis, mesh.size(axis)) for axis in self.axes))

    @staticmethod
    def _number(line: Mesh, mesh: Mesh, device: int) -> int:
        """The number along the line of a device of the mesh."""
        place, number = mesh.place(device), 0
        for axis, size in line.axes:
            number = number * size + place[axis]
        return number

    def _pieces(self, array: np.ndarray, line: Mesh, number: int) -> list[np.ndarray]:
        """Views of what device `number` of the line has of each matrix."""
        ends = np.cumsum([part.size for part in self.parts])
        found = []
        for part, matrix in zip(self.parts, np.split(array, ends[:-1], axis=self.dimension), strict=True):
            spread = Sharding(tuple(part.axes if one == self.dimension else () for one in range(array.ndim)))
            found.append(matrix[spread.index(matrix.shape, line, number)])
        return found


def along(part: Part, mesh: Mesh) -> int:
    """The size of one device's piece. Raises SignatureError where the matrix does not divide evenly."""
    return Sharding((part.axes,)).shard((part.size,), mesh)[0]
