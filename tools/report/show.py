"""Renders a `StepReport` as text for a terminal. Each column of a table has one unit."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from .report import Composite, Fit, Row, StepReport, Total
from .units import Unit

LONGEST = 14
"""Maximum number of rows of a table; one more sums the others."""
WIDTH = 132


def text(report: StepReport) -> str:
    """The tables, without colour."""
    console = Console(width=WIDTH, record=True, file=io.StringIO(), highlight=False)
    console.print(f"{report.name} for {report.target}\n", markup=False)
    console.print(verdict(report.fit))
    console.print(_table(*memory(report.fit)))
    for line in summary(report.total):
        console.print(line, soft_wrap=True)
    console.print(_table(*figures(report.paths), title="by module"))
    if report.kinds:
        console.print(_table(*figures(report.kinds), title="by kind of op"))
    console.print(composite_table(report.composites))
    return console.export_text()


def verdict(fit: Fit) -> str:
    """One sentence: whether the step fits on one device, and by how much."""
    unit = Unit.of_bytes((fit.needed, fit.available))
    if fit.fits:
        return f"It fits: {unit.of(fit.needed)} of {unit.of(fit.available)}, {unit.of(fit.available - fit.needed)} are left."
    return (
        f"It does not fit: {unit.of(fit.needed)} {'or more ' if fit.program is None else ''}of {unit.of(fit.available)}, "
        f"{unit.of(fit.needed - fit.available)} too much; {fit.devices} devices would have room."
    )


def summary(total: Total) -> list[str]:
    """The step's bounds in words."""
    times = Unit.of_seconds((total.roofline, total.bound))
    flops = Unit.of_flops((total.flops, total.compiled_flops))
    traffic = Unit.of_traffic((total.bytes, total.compiled_bytes))
    lines = [f"Roofline: {times.of(total.roofline)} ({flops.of(total.flops)}, {traffic.of(total.bytes)})."]
    if total.bound is None or total.outside_roofline is None or total.outside_bound is None:
        return [*lines, "It was not compiled, so these are the model's own lower bounds."]
    ratio = f", {total.outside_bound / total.outside_roofline:.2f} times its roofline" if total.outside_roofline else ""
    least = "at least " if total.unknown_loops else ""
    lines.append(
        f"As compiled: {least}{times.of(total.bound)} summed over its ops ({flops.of(total.compiled_flops or 0)}, "
        f"{traffic.of(total.compiled_bytes or 0)}); outside the kernels {least}{times.of(total.outside_bound)}{ratio}."
    )
    if total.unknown_loops:
        lines.append(
            f"{total.unknown_loops} loops run as often as the data says. They are counted with as many rounds as their "
            "composite's roofline takes, never fewer than one: rows marked >= are lower bounds."
        )
    return lines


Cells = tuple[Sequence[str], Sequence[Sequence[str]]]
"""A table's head and rows."""


def memory(fit: Fit) -> Cells:
    """A table of memory use, in one unit."""
    parts = {
        "weights": fit.weights, "KV caches": fit.caches, "inputs": fit.inputs, "temporaries": fit.temporaries,
        "program": fit.program,
    }  # fmt: skip
    unit = Unit.of_bytes(parts.values())
    rows = [(name, "not compiled" if size is None else unit(size)) for name, size in parts.items()]
    return ("memory", unit.name), rows


def figures(rows: Sequence[Row]) -> Cells:
    """A table of the rows' figures; long tables end with a row that sums the rest."""
    shown = shortened(rows)
    flops, traffic = Unit.of_flops(row.flops for row in shown), Unit.of_traffic(row.bytes for row in shown)
    times = Unit.of_seconds(time for row in shown for time in (row.roofline, row.bound))
    whole = sum(time(row) for row in rows) or 1.0
    head = (
        "",
        "ops",
        flops.name,
        traffic.name,
        f"roofline, {times.name}",
        f"as compiled, {times.name}",
        "part",
        "cycles",
    )
    cells = [
        (
            row.name,
            str(row.count),
            flops(row.flops),
            traffic(row.bytes),
            times(row.roofline) if row.roofline else "",
            "" if row.bound is None else f"{'>= ' if row.unknown_loops else ''}{times(row.bound)}",
            f"{100 * time(row) / whole:.1f}%",
            f"{row.cycles:,}" if row.cycles else "",
        )
        for row in shown
    ]
    return head, cells


def shortened(rows: Sequence[Row]) -> list[Row]:
    """The first rows, and one that sums the others."""
    if len(rows) <= LONGEST + 1:
        return list(rows)
    others = rows[LONGEST:]
    bounds, cycles = [row.bound for row in others], [row.cycles for row in others]
    summed = Row(
        f"{len(others)} more",
        sum(row.count for row in others),
        sum(row.flops for row in others),
        sum(row.bytes for row in others),
        sum(row.roofline for row in others),
        None if None in bounds else sum(bound or 0.0 for bound in bounds),
        None if None in cycles else sum(one or 0 for one in cycles),
        sum(row.unknown_loops for row in others),
    )
    return [*rows[:LONGEST], summed]


def time(row: Row) -> float:
    """The bound as compiled in seconds, or the roofline where it was not compiled."""
    return row.roofline if row.bound is None else row.bound


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> Table:
    table = Table(head[0] or title or "", title_justify="left")
    for column in head[1:]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def composite_table(composites: Sequence[Composite], title: str | None = None) -> Table:
    """A row per kind of composite: its implementation, and why others were not taken."""
    table = Table("composite", "count", "became", "why not another", title=title, title_justify="left")
    for one in composites:
        table.add_row(one.kernel, str(one.count), one.became, "\n".join(one.reasons))
    return table
