"""Rows of the comparison: what is kept in docs/bench, and the table of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import refused
from .layers import Layer, layers

if TYPE_CHECKING:
    from rich.table import Table

FORMS = {
    "pallas": "Pallas", "absorbed": "Pallas, absorbed", "decompressed": "Pallas, decompressed", "wheel": "jax's wheel",
    "xla": "XLA", "xla, decompressed": "XLA, decompressed", "ragged dot": "XLA, ragged dot", "reference": "XLA",
}  # fmt: skip
"""Form -> what the table calls it."""
Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class Row:
    """One form of a layer on one target.

    cycles: of the call, 0 where there are none. least: cycles in which the target could do the least work of any form, its
    memory at full bandwidth and its matrix units at their peak. bytes: of memory traffic by XLA's cost analysis, which counts loop bodies
    once, and a Pallas kernel's only where it says them. temporaries: bytes. seconds: of compilation. taken: whether legalization takes
    this form. refused: why it does not take the shape, known before a compiler runs. failed: why the compiler made no program of it.
    """

    kernel: str
    model: str
    step: str
    target: str
    form: str
    cycles: float = 0.0
    least: float = 0.0
    bytes: float = 0.0
    temporaries: int = 0
    seconds: float = 0.0
    taken: bool = False
    refused: str = ""
    failed: str = ""

    @classmethod
    def of(cls, layer: Layer, target: str, form: str) -> Row:
        """The row before anything is compiled."""
        return cls(layer.kernel, layer.model, layer.name, target, form)

    @property
    def group(self) -> Key:
        """What its cycles can be compared within."""
        return self.kernel, self.model, self.step, self.target

    @property
    def key(self) -> tuple[str, ...]:
        return *self.group, self.form

    @property
    def words(self) -> str:
        """What `--of` looks for words in."""
        return " ".join((*self.group, FORMS[self.form]))


def all_rows() -> list[Row]:
    """Every row of the table, none of them measured."""
    return [Row.of(layer, target, form) for layer in layers() for target in layer.targets for form in layer.forms]


def fastest(rows: Sequence[Row]) -> dict[Key, Row]:
    """Of each group the form with the fewest cycles, of those whose cycles are all counted."""
    best: dict[Key, Row] = {}
    for row in rows:
        if row.cycles and row.form != "ragged dot" and (row.group not in best or row.cycles < best[row.group].cycles):
            best[row.group] = row
    return best


def tables(rows: Sequence[Row]) -> list[Table]:
    from rich.table import Table

    made = Table(
        "kernel", "layer of", "step", "target", "form", "cycles", "of the fastest", "of the least", "MB moved", "temporaries MB", "taken",
        title="One layer's call, by form",
    )  # fmt: skip
    best = fastest(rows)
    for row in rows:
        numbers = (
            [row.refused or row.failed[:60], "", "", "", ""]
            if row.refused or row.failed
            else [
                f"{row.cycles:,.0f}", f"{row.cycles / best[row.group].cycles:.2f}", f"{row.cycles / row.least:.1f}" if row.least else "",
                f"{row.bytes / 1e6:,.0f}", f"{row.temporaries / 1e6:,.0f}",
            ]
        )  # fmt: skip
        made.add_row(row.kernel, row.model, row.step, row.target, FORMS[row.form], *numbers, "yes" if row.taken else "")
    return [made, refused.table()]
