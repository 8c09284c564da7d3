"""What a run changed against the record of docs/bench: a figure of each row by name, where it moved by more than runs differ.

Figures of another processor are compared too, and its name stands above them: ratios to a peer are what holds there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from .record import Record

LEAST = 0.05
"""The least change that is shown, of the figure before."""


def table(now: Record, before: Record) -> Table:
    """A row for each figure that changed by LEAST or more; where none did, one row says so."""
    made = Table(
        "",
        "figure",
        "before",
        "now",
        "change",
        title=f"{now.part}: against the record of {before.date}, {before.machine}",
    )
    for column in made.columns[2:]:
        column.justify = "right"
    for row, name, old, new in _changed(now.rows, before.rows):
        made.add_row(row, name, f"{old:,.4g}", f"{new:,.4g}", f"{new / old - 1:+.0%}")
    if not made.row_count:
        made.add_row(f"no figure changed by {LEAST:.0%}", "", "", "", "")
    return made


def _changed(
    now: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, str, float, float]]:
    """(row, figure, before, now) of rows that both runs have; rows are the same where all their words are."""
    known = {_words(row): row for row in before}
    for row in now:
        old = known.get(_words(row), {})
        for name, value in row.items():
            former = old.get(name)
            if (
                isinstance(value, float)
                and isinstance(former, (int, float))
                and former
                and abs(value / former - 1) >= LEAST
            ):
                yield ", ".join(_words(row)), name, former, value


def _words(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What names a row: its texts, but those that say how a figure is to be read."""
    return tuple(
        value
        for name, value in row.items()
        if isinstance(value, str) and name not in ("unit", "better", "bound", "note")
    )
