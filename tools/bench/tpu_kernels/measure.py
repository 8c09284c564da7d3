"""Measures rows: a process per layer compiles its programs, and another its Pallas kernels alone.

Comes in: rows to measure. Goes out: the same rows with the compiler's figures, a layer's at a time, so that a run can be stopped and gone
on with. libtpu reads its flags once a process, and its profiler ends the process where it does not know what XLA compiles around a
Pallas kernel; so kernels are compiled apart from their programs, and once more without the profiler where it ended the process.
A program that takes the compiler longer than LIMIT is given up, and its row says so.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import groupby

from ..kept import Kept
from . import child
from .compiler import PROFILES, SCHEDULES
from .rows import Row, all_rows, tables

Say = Callable[[str], None]
LIMIT = 240.0
"""Seconds for a row: of its program, or of its Pallas kernels."""
PROFILED = {"ragged_paged_attention": ("tpu-v5e", "tpu-v6e"), "ragged_paged_latent_attention": ("tpu-v6e",)}
"""Kernels whose loops follow the data -> targets on which libtpu's profiler knows their instructions."""
ENDED = "the compiler ended its process"


def measure(rows: Sequence[Row], say: Say) -> Iterator[list[Row]]:
    """The rows of each layer, as soon as they are measured."""
    for (kernel, model, step), found in groupby(rows, lambda row: row.key[:3]):
        given = list(found)
        say(f"kernels-tpu: {kernel}, {model}, {step}: {len(given)} programs")
        programs = answers(given, "program", "")
        kernels = [row for row in programs if not (row.refused or row.failed) and child.has_kernel(row)]
        alone: dict[tuple[str, ...], Row] = {}
        for flags in (PROFILES, SCHEDULES):
            mine = [row for row in kernels if flags_of(row) == flags]
            alone |= {row.key: row for row in answers(mine, "kernel", flags)}
        yield [with_kernels(row, alone.get(row.key)) for row in programs]


def flags_of(row: Row) -> str:
    """libtpu's flags for the row's kernels. The profiler does not come to an end with the decompressed form."""
    asked = row.form != "decompressed" and row.target in PROFILED.get(row.kernel, ())
    return PROFILES if asked else SCHEDULES


def with_kernels(program: Row, kernels: Row | None) -> Row:
    """A program's row with the cycles of its Pallas kernels, if it has any; without cycles where they have none."""
    if kernels is None:
        return program
    if kernels.failed:
        return replace(program, cycles=0.0, failed=f"its kernels alone: {kernels.failed}")
    return replace(program, cycles=program.cycles + kernels.cycles)


def answers(rows: Sequence[Row], what: str, flags: str, limit: float = LIMIT) -> list[Row]:
    """What the child says of each row; where the profiler ended the process, the row is asked for once more without it."""
    found: list[Row] = []
    with _Child(what, flags) as process:
        for row in rows:
            answer = process.ask(row, limit)
            if answer == ENDED and flags == PROFILES:
                (answer,) = answers([row], what, SCHEDULES, limit)
            found.append(answer if isinstance(answer, Row) else replace(row, failed=answer))
    return found


class _Child:
    """The process that compiles, started when it is first asked, and again after a row that ended it. Ended with the `with` block."""

    def __init__(self, what: str, flags: str) -> None:
        self._what, self._flags = what, flags
        self._open = ExitStack()
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._open.close()

    def ask(self, row: Row, limit: float) -> Row | str:
        """The row with figures, or why there are none."""
        process = self._process or self._start()
        given, answers = process.stdin, process.stdout
        assert given is not None
        assert answers is not None
        given.write(json.dumps(asdict(row)) + "\n")
        given.flush()
        ready, _, _ = select.select([answers], [], [], limit)
        if line := answers.readline() if ready else "":
            return Row(**json.loads(line))
        self.__exit__()
        return ENDED if ready else f"not compiled within {limit:.0f} s"

    def _start(self) -> subprocess.Popen[str]:
        folder = self._open.enter_context(tempfile.TemporaryDirectory())
        flags = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {self._flags.replace('{}', folder)}"
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", child.__name__, self._what, folder],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"LIBTPU_INIT_ARGS": flags},
        )  # fmt: skip
        self._process = self._open.enter_context(process)
        return process


PART = Kept(Row, all_rows, measure, tables)
