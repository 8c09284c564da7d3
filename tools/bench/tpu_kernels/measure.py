"""Measures rows: a process per layer compiles its programs, and another its Pallas kernels alone.

Comes in: rows to measure. Goes out: the same rows with the compiler's figures, a layer's at a time, so that a run can be stopped and gone
on with. libtpu reads its flags once a process, and its profiler ends the process where it does not know what XLA compiles around a
Pallas kernel; so kernels are compiled apart from their programs, and once more without the profiler where it ended the process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import groupby

from ..kept import Kept
from . import child
from .compiler import PROFILES, SCHEDULES
from .rows import Row, all_rows, tables

Say = Callable[[str], None]


def measure(rows: Sequence[Row], say: Say) -> Iterator[list[Row]]:
    """The rows of each layer, as soon as they are measured."""
    for (kernel, model, step), found in groupby(rows, lambda row: row.key[:3]):
        given = list(found)
        say(f"kernels-tpu: {kernel}, {model}, {step}: {len(given)} programs")
        programs = _in_a_process(given, "program", "")
        kernels = [row for row in programs if not row.refused and child.has_kernel(row)]
        cycles = {row.key: row.cycles for row in _in_a_process(kernels, "kernel", PROFILES)} if kernels else {}
        yield [replace(row, cycles=row.cycles + cycles.get(row.key, 0.0)) for row in programs]


def _in_a_process(rows: Sequence[Row], what: str, flags: str) -> list[Row]:
    """What the child says of each row; where the process ends without an answer, the row is asked for once more without the profiler."""
    found: list[Row] = []
    while len(found) < len(rows):
        left = rows[len(found) :]
        answers = _answers(left, what, flags)
        found += answers
        if len(answers) < len(left) and flags == PROFILES:
            found += _in_a_process(left[len(answers) :][:1], what, SCHEDULES)
        elif len(answers) < len(left):
            found.append(replace(left[len(answers)], refused="the compiler ended its process"))
    return found


def _answers(rows: Sequence[Row], what: str, flags: str) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        given = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {flags.replace('{}', folder)}"
        request = json.dumps({"rows": [asdict(row) for row in rows], "folder": folder, "what": what})
        done = subprocess.run(
            [sys.executable, "-P", "-m", child.__name__], input=request, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"LIBTPU_INIT_ARGS": given}, check=False,
        )  # fmt: skip
        return [Row(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]


PART = Kept(Row, all_rows, measure, tables)
