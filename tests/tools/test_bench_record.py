"""The bench's records: what is printed is what is kept, and what README and docs/measured.md show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import rich.table

from fxhlo.tools.bench import changes, depth, loops
from fxhlo.tools.bench.page import readme
from fxhlo.tools.bench.record import Machine, Record, records


@dataclass(frozen=True)
class Row:
    what: str
    seconds: float


def _record(features: tuple[str, ...] = ("avx2", "avx512f")) -> Record:
    here = Machine("a processor", 2, features)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Machine, "here", lambda: here)
        return _recorded()


def _recorded() -> Record:
    table = rich.table.Table("what", "seconds", title="Starts")
    table.add_row("first | cold", "1.50")
    return Record.now("serving", [table], [Row("first | cold", 1.5)])


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = _record()
    made.save(tmp_path)
    assert records(tmp_path) == {"serving": made}
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


def test_each_class_of_processor_has_records_of_its_own() -> None:
    assert _record(("avx2",)).part == "serving-avx2"
    assert _record(("avx2", "avx512f", "amx_bf16")).part == "serving-amx"
    assert Record.now("kernels-tpu", [], []).part == "kernels-tpu"
    assert Machine.here().cores >= 1


def test_what_changed_is_shown_by_row_and_figure() -> None:
    before, now = _record(), _record()
    object.__setattr__(now, "rows", ({"what": "first | cold", "seconds": 1.2}, {"what": "new", "seconds": 3.0}))
    table = changes.table(now, before)
    assert [list(column.cells) for column in table.columns] == [
        ["first | cold"],
        ["seconds"],
        ["1.5"],
        ["1.2"],
        ["-20%"],
    ]
    assert list(changes.table(before, before).columns[0].cells) == ["no figure changed by 5%"]


def test_a_piece_keeps_the_other_rows_of_this_class_of_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    old = loops.Form("cpu", 4, "loop", 1.0, 10)
    last = Record.now("loop", [], [old])
    monkeypatch.setattr(depth, "records", lambda: {last.part: last})
    new = loops.Form("cpu", 16, "loop", 2.0, 10)
    assert depth.with_recorded("loop", loops.Form, [new]) == [old, new]
