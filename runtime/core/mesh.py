"""Mesh: the devices that one program runs on, as a grid with named axes.

Comes in: axis names and sizes, or the JSON of a manifest. Goes out: a frozen `Mesh`. Guaranteed: names are unique, sizes positive.
The mesh without axes is one device. Devices are numbered in the order of the grid, the last axis running fastest; `first` is the number
that its first device has among all: stages of a pipeline lie on devices of their own.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from .errors import SignatureError


@dataclass(frozen=True)
class Mesh:
    """Axes with their sizes, outermost first: `Mesh((("data", 2), ("model", 4)))` has eight devices, Shardy's <["data"=2, "model"=4]>.

    Raises SignatureError for names that repeat or are empty, and sizes below 1.
    """

    axes: tuple[tuple[str, int], ...] = ()
    first: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", tuple((name, size) for name, size in self.axes))
        names = [name for name, _ in self.axes]
        if len(set(names)) < len(names):
            raise SignatureError(f"the mesh {self} has an axis twice", next_step="give each axis a name of its own")
        for name, size in self.axes:
            if not isinstance(name, str) or not name or type(size) is not int or size < 1:
                raise SignatureError(
                    f"the mesh has an axis {name!r} of size {size!r}",
                    next_step="an axis has a name and a size from 1 on",
                )
        if type(self.first) is not int or self.first < 0:
            raise SignatureError(f"the mesh's first device is {self.first!r}, not a number from 0 on")

    @property
    def devices(self) -> int:
        """How many devices it takes."""
        return math.prod(size for _, size in self.axes)

    def size(self, axis: str) -> int:
        """Devices along an axis. Raises SignatureError where there is no axis of that name."""
        for name, size in self.axes:
            if name == axis:
                return size
        raise SignatureError(f"the mesh {self} has no axis {axis!r}")

    def place(self, device: int) -> dict[str, int]:
        """Where device number `device` stands: its index along each axis."""
        found = {}
        for name, size in reversed(self.axes):
            device, found[name] = divmod(device, size)
        return found

    def groups(self, axes: Collection[str]) -> list[list[int]]:
        """The devices that differ along `axes` alone: those among which a sum over these axes is made, in order."""
        found: dict[tuple[tuple[str, int], ...], list[int]] = {}
        for device in range(self.devices):
            others = tuple((name, index) for name, index in self.place(device).items() if name not in axes)
            found.setdefault(others, []).append(device)
        return list(found.values())

    def to_json(self) -> list[list[str | int]]:
        """[["data", 2], ["model", 4]], and [["", 8]] before them where it begins with device 8; `from_json` gives an equal mesh."""
        axes: list[list[str | int]] = [[name, size] for name, size in self.axes]
        return [["", self.first], *axes] if self.first else axes

    @staticmethod
    def from_json(data: object) -> Mesh:
        """Raises SignatureError where `data` is not what `to_json` gives."""
        if not isinstance(data, list) or not all(isinstance(axis, list) and len(axis) == 2 for axis in data):
            raise SignatureError(f"mesh is {data!r}, not a list of axes with their sizes")
        first = data[0][1] if data and data[0][0] == "" else 0
        return Mesh(tuple((name, size) for name, size in (data[1:] if first else data)), first)

    def __str__(self) -> str:
        axes = ", ".join(f"{name}={size}" for name, size in self.axes) or "one device"
        return f"{axes}, from device {self.first} on" if self.first else axes


ONE_DEVICE = Mesh()
