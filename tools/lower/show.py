"""Shows a run's results besides the module: facts as JSON, decisions and notes, times, compiled programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from time import perf_counter
from typing import TYPE_CHECKING

from rich.table import Table

from ...runtime.core.errors import FxhloError
from .. import console
from ..report.units import Unit
from .output import write_text
from .request import Request
from .stages import Made, Report

if TYPE_CHECKING:
    from ...passes.base import Pass


def show(made: Sequence[Made], request: Request, report: Report) -> None:
    """Prints facts as JSON on stdout, or the output of --explain and --timing on stderr."""
    if request.as_json:
        console.put(json.dumps(asdict(report), indent=2))
    for path in report.written:
        console.say(f"wrote {path}")
    if request.explain:
        show_decisions(made, report)
    if request.timing:
        show_times(report)


def show_reports(made: Sequence[Made], request: Request, report: Report) -> None:
    """The reports as a page with --html, or as tables on stdout; of a target without rates what was compiled."""
    from ..report.page import page
    from ..report.report import StepReport
    from ..report.show import text

    reports = [one.report for one in made if isinstance(one.report, StepReport)]
    if request.html is not None:
        if not reports:
            raise FxhloError(
                f"there is no report for {request.target}: its memory and rates are not known",
                next_step="--target tpu-v6e, or another TPU",
            )
        write_text(request.html, page(reports, report.model), report)
    elif not request.as_json and not request.texts and request.output is None:
        for one in made:
            if isinstance(one.report, StepReport):
                console.put(text(one.report))
            elif one.report is not None:
                console.put(one.report.text())
            elif one.compiled is not None:
                console.put(compiled_text(one, str(request.target)))


def compiled_text(one: Made, target: str) -> str:
    """A few lines about a compiled program: its memory, and the kernels it calls."""
    assert one.compiled is not None and one.legalized is not None
    memory = asdict(one.compiled.memory)
    unit = Unit.of_bytes(memory.values())
    lines = [f"{one.label} compiled for {target}"]
    lines += [f"  {name:<12} {unit(size):>10} {unit.name}" for name, size in memory.items()]
    calls = ", ".join(one.legalized.custom_calls)
    lines.append(f"  kernels      {calls or 'none of its own: plain XLA'}")
    return "\n".join([*lines, "--optimized prints the compiler's HLO, --legalized the module that it was given"])


def show_decisions(made: Sequence[Made], report: Report) -> None:
    """Prints the rewrites that declined, and the implementation of each composite."""
    from ..report.report import composites
    from ..report.show import composite_table

    for note in report.notes:
        place = f" at {note['where']}" if note["where"] else ""
        console.say(f"{note['rewrite']} left {note['count']} as they were{place}: {note['reason']}")
    for one in made:
        if one.legalized is None:
            continue
        found = composites(one.legalized.decisions)
        none = f"{one.label}: no composites, every op has a rule of its own"
        console.stderr.print(composite_table(found, one.label) if found else none)


def show_times(report: Report) -> None:
    """Seconds of each stage, of each pass with the graph's size before and after it, and of the whole command."""
    table = Table("stage", "seconds", "nodes")
    for name, seconds in report.stages.items():
        table.add_row(name, f"{seconds:.2f}")
        if name == "passes":
            for row in report.passes:
                nodes = f"{row['nodes_before']} -> {row['nodes_after']}"
                table.add_row(f"  {row['name']}", f"{row['seconds']:.2f}", nodes)
    whole = perf_counter() - console.BEGAN
    table.add_section()
    table.add_row("other", f"{max(whole - sum(report.stages.values()), 0.0):.2f}", "")
    table.add_row("all", f"{whole:.2f}", "")
    console.stderr.print(table)


def list_passes(of: Sequence[tuple[str, Sequence[Pass]]], *, as_json: bool) -> None:
    """Each pass with its options and their defaults, in the order in which they run."""
    from ...passes.options import options

    if as_json:
        facts = [
            {
                "of": title,
                "pass": step.name,
                "options": [{"name": one.name, "default": one.text, "takes": one.takes} for one in options(step)],
            }
            for title, passes in of
            for step in passes
        ]
        console.put(json.dumps(facts, indent=2))
        return
    for title, passes in of:
        console.put(f"{title}:")
        for step in passes:
            console.put(f"  {step.name:<16} {step.summary()}")
            for one in options(step):
                console.put(f"    --pass-option {step.name}.{one.name}={one.text}   ({one.takes})")
