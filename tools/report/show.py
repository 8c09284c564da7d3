"""A `StepReport` as text: what a terminal shows."""

from __future__ import annotations

import os

from rich.console import Console
from rich.table import Table

from .report import Fit, Row, StepReport, Total

LONGEST = 14
"""Rows of a table; the others are summed up in one."""


def text(report: StepReport) -> str:
    """The tables, without colour."""
    console = Console(width=118, record=True, file=open(os.devnull, "w"), highlight=False)
    console.print(f"{report.name} for {report.target}\n")
    console.print(verdict(report.fit))
    console.print(_memory(report.fit))
    for line in summary(report.total):
        console.print(line)
    console.print(_rows("by module", report.paths))
    console.print(_rows("by kind of op", report.kinds))
    console.print(_composites(report))
    return console.export_text()


def verdict(fit: Fit) -> str:
    """One sentence: does it fit, and by how much."""
    if fit.fits:
        return f"It fits: {gib(fit.needed)} of {gib(fit.available)}, {gib(fit.available - fit.needed)} are left."
    return (
        f"It does not fit: {gib(fit.needed)} {'or more ' if fit.program is None else ''}of {gib(fit.available)}, "
        f"{gib(fit.needed - fit.available)} too much; {fit.devices} devices would have room."
    )


def summary(total: Total) -> list[str]:
    """The step's bounds in words."""
    lines = [f"Roofline: {microseconds(total.roofline)} ({number(total.flops)}FLOP, {number(total.bytes)}B)."]
    if total.bound is None or total.outside_roofline is None or total.outside_bound is None:
        return [*lines, "It was not compiled, so these are the model's own lower bounds."]
    ratio = f", {total.outside_bound / total.outside_roofline:.2f} times its roofline" if total.outside_roofline else ""
    lines += [
        f"As compiled: {microseconds(total.bound)} summed over its ops ({number(total.compiled_flops)}FLOP, "
        f"{number(total.compiled_bytes)}B); outside the kernels {microseconds(total.outside_bound)}{ratio}.",
    ]
    if total.unknown_loops:
        lines.append(f"{total.unknown_loops} loops run as often as the data says; their bodies are counted once.")
    return lines


def _memory(fit: Fit) -> Table:
    table = Table("memory", "size")
    parts = {
        "weights": fit.weights, "KV caches": fit.caches, "inputs": fit.inputs, "temporaries": fit.temporaries,
        "program": fit.program,
    }  # fmt: skip
    for name, size in parts.items():
        table.add_row(name, "not compiled" if size is None else gib(size))
    return table


def _rows(title: str, rows: tuple[Row, ...]) -> Table:
    table = Table(title, title_justify="left")
    for column in ("ops", "FLOP", "bytes", "roofline", "as compiled", "part", "cycles"):
        table.add_column(column, justify="right")
    whole = sum(time(row) for row in rows) or 1.0
    for row in shortened(rows):
        table.add_row(
            row.name,
            str(row.count),
            number(row.flops),
            number(row.bytes),
            microseconds(row.roofline) if row.roofline else "",
            "" if row.bound is None else microseconds(row.bound),
            f"{100 * time(row) / whole:.1f}%",
            f"{row.cycles:,}" if row.cycles else "",
        )
    return table


def shortened(rows: tuple[Row, ...]) -> list[Row]:
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
    )
    return [*rows[:LONGEST], summed]


def time(row: Row) -> float:
    """The bound as compiled, or the roofline where it was not."""
    return row.roofline if row.bound is None else row.bound


def _composites(report: StepReport) -> Table:
    table = Table("composite", "count", "became", "why not another")
    for one in report.composites:
        table.add_row(one["kernel"], str(one["count"]), one["became"], "\n".join(one["reasons"]))
    return table


def gib(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**27 else f"{size / 2**20:,.2f} MiB"


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f} us" if seconds < 0.01 else f"{seconds * 1e3:,.1f} ms"


def number(value: float | None) -> str:
    """1.23 G, with the letter that fits."""
    value = value or 0.0
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.2f} {letter}"
    return f"{value:.0f} "
