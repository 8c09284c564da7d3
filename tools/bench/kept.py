"""Parts of the bench whose rows are the compiler's figures, and so the same on any machine: a record keeps them from run to run.

Comes in: all rows of a part, how some are measured. Goes out: those that were asked for, with `record` in one table with those of the
record. Each piece is recorded as soon as it is measured, so that a run can be stopped, and gone on with by `--missing`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from .record import Record, records

if TYPE_CHECKING:
    from rich.table import Table

Say = Callable[[str], None]


class Named(Protocol):
    """What a row has beside its figures."""

    @property
    def key(self) -> tuple[str, ...]: ...

    @property
    def words(self) -> str: ...


R = TypeVar("R", bound=Named)


@dataclass(frozen=True)
class Kept(Generic[R]):
    """row: the class of rows. every: all rows of the part, not measured, in the table's order. measure: gives rows in pieces as they are
    done. tables: shows them."""

    row: type[R]
    every: Callable[[], Sequence[R]]
    measure: Callable[[Sequence[R], Say], Iterator[Sequence[R]]]
    tables: Callable[[Sequence[R]], Sequence[Table]]

    def run(self, name: str, of: str, *, missing: bool, record: bool, say: Say) -> list[R]:
        """Measures the rows that have all words of `of`, and with `missing` are not in the record. Returns what there is then."""
        have = {row.key for row in self.recorded(name)} if missing else set()
        wanted = [row for row in self.every() if row.key not in have and all(word in row.words for word in of.split())]
        found: list[R] = []
        for rows in self.measure(wanted, say):
            found += rows
            if record:  # what another process has recorded meanwhile is kept
                kept = self.merged(self.recorded(name), rows)
                say(f"recorded: {Record.now(name, self.tables(kept), kept).save()}")
        return self.recorded(name) if record else found

    def recorded(self, name: str) -> list[R]:
        """The rows of the record."""
        kept = records().get(name)
        return [self.row(**fields) for fields in kept.rows] if kept else []

    def merged(self, old: Sequence[R], new: Sequence[R]) -> list[R]:
        """The rows of both in the table's order, the new ones in place of the old. Rows that the part no longer has are left out."""
        found = {row.key: row for row in (*old, *new)}
        return [found[row.key] for row in self.every() if row.key in found]
