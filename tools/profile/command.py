"""`lower-model profile`: sums up the profiles that an engine has written.

Comes in: a folder of traces, or one. Goes out: a table of its programs with the parts of their steps, or the same as JSON.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ...runtime.core.errors import FxhloError
from ...runtime.vllm.profiling.summary import Program, programs, steps_of, traces
from .. import console
from ..report.units import Unit

WIDTH = 176


def show_profile(place: Path, *, as_json: bool) -> None:
    """Runs the command. Raises FxhloError for a place without a step."""
    found = traces(place)
    steps = [step for trace in found for step in steps_of(trace)]
    if not steps:
        raise FxhloError("the profiles have no step", where=place, next_step="send requests while a profile is taken")
    rows = programs(steps)
    if as_json:
        console.put(
            json.dumps({"traces": [str(trace) for trace in found], "programs": [asdict(row) for row in rows]}, indent=1)
        )
        return
    console.put(text(rows, found))


def text(rows: Sequence[Program], found: Sequence[Path]) -> str:
    """The table, without colour; times in one unit."""
    shown = Console(width=WIDTH, record=True, file=io.StringIO(), highlight=False)
    unit = Unit.of_seconds(row.whole for row in rows)
    parts = list(rows[0].parts)
    table = Table("program", "steps", "tokens", "padding", "step", "median", "99th", "device", *parts)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(
            row.name, f"{row.steps:,}", f"{row.tokens:,.1f}", f"{100 * row.padding:.0f}%",
            unit(row.whole), unit(row.median), unit(row.late), unit(row.device), *(unit(row.parts[part]) for part in parts),
        )  # fmt: skip
    steps, whole = sum(row.steps for row in rows), sum(row.steps * row.whole for row in rows)
    for line in (
        f"{steps:,} steps of {len(rows)} programs in {whole:.3f} s, without the time in which no request was there.",
        f"Times are means in {unit.name}. A step is its gap (vLLM schedules) and the host's parts, in order; the device works beside them.",
    ):
        shown.print(line, markup=False, soft_wrap=True)
    shown.print(table)
    shown.print(
        f"Pictures: open {', '.join(map(str, found[:3]))}{' ...' if len(found) > 3 else ''} in https://ui.perfetto.dev",
        markup=False,
        soft_wrap=True,
    )
    return shown.export_text()
