"""Units: one for all figures of a column, so that they can be compared at a glance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """A unit and its size in base units. Called with a figure, it returns the number to show."""

    name: str
    size: float

    def __call__(self, figure: float | None, digits: int | None = None) -> str:
        """The figure in this unit, without the unit's name; "" for None."""
        if figure is None:
            return ""
        number = figure / self.size
        if digits is None:
            digits = 0 if not number or number >= 1000 else 1 if number >= 100 else 2 if number >= 1 else 3
        return f"{number:,.{digits}f}"

    def of(self, figure: float) -> str:
        """The figure with the unit: "1.25 ms"."""
        return f"{self(figure)} {self.name}"

    @classmethod
    def of_seconds(cls, figures: Iterable[float | None]) -> Unit:
        """The unit in which the largest of the figures has few digits: us, ms or s."""
        return _chosen(figures, (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)))

    @classmethod
    def of_bytes(cls, figures: Iterable[float | None]) -> Unit:
        """The unit for memory: GiB, MiB, KiB or bytes."""
        return _chosen(figures, (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10), ("bytes", 1.0)))

    @classmethod
    def of_traffic(cls, figures: Iterable[float | None]) -> Unit:
        """The unit for traffic, as bandwidths are in GB/s: GB, MB, kB or B."""
        return _chosen(figures, (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0)))

    @classmethod
    def of_flops(cls, figures: Iterable[float | None]) -> Unit:
        """The unit for operations: TFLOP, GFLOP, MFLOP, kFLOP or FLOP."""
        return _chosen(figures, (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6), ("kFLOP", 1e3), ("FLOP", 1.0)))


def _chosen(figures: Iterable[float | None], units: tuple[tuple[str, float], ...]) -> Unit:
    largest = max((figure for figure in figures if figure is not None), default=0.0)
    return Unit(*next((unit for unit in units if largest >= unit[1]), units[-1]))
