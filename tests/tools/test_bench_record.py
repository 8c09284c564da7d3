"""The bench's records: what is printed is what is kept, and what README and docs/measured.md show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import rich.table

from fxhlo.tools.bench.page import readme
from fxhlo.tools.bench.record import Machine, Record, records


@dataclass(frozen=True)
class Row:
    what: str
    seconds: float


def _record() -> Record:
    table = rich.table.Table("what", "seconds", title="Starts")
    table.add_row("first | cold", "1.50")
    return Record.now("serving", [table], [Row("first | cold", 1.5)])


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = _record()
    made.save(tmp_path)
    assert records(tmp_path) == {"serving": made}
    assert made.machine == Machine.here()
    assert made.rows == ({"what": "first | cold", "seconds": 1.5},)
    assert '`make bench BENCH="--only serving"` on ' in made.source()


def test_a_table_becomes_markdown() -> None:
    (table,) = _record().tables
    assert table.markdown() == "| what | seconds |\n| --- | ---: |\n| first \\| cold | 1.50 |"


def test_readme_gets_the_tables_between_its_marks() -> None:
    text = "a\n<!-- measured: serving -->\nformer\n<!-- end -->\nb\n<!-- measured: other -->\nkept\n<!-- end -->\n"
    made = readme(text, {"serving": _record()})
    assert "former" not in made
    assert "| first \\| cold | 1.50 |" in made
    assert made.startswith("a\n<!-- measured: serving -->\n| what")
    assert "kept" in made
    assert readme(made, {"serving": _record()}) == made
