"""Renders a plan for a terminal: what it was made for, a bar and a row for each program, and the sizes that double beside it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.bar import Bar
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from .planned import Planned

WIDTH = 132
BAR = 24
"""Characters of a bar."""


def text(made: Planned) -> str:
    """The whole plan, without colour."""
    console = Console(width=WIDTH, record=True, file=io.StringIO(), highlight=False)
    for line in summary(made):
        console.print(line, markup=False, soft_wrap=True)
    table = Table("tokens", "requests", "steps that run in it", "part of the time", "", "padding", "")
    table.columns[2].no_wrap = True
    for column in (table.columns[0], table.columns[1], table.columns[3], table.columns[5]):
        column.justify = "right"
    most = max((use.share for use in made.uses), default=1.0) or 1.0
    for use, steps in zip(made.uses, steps_of(made), strict=True):
        table.add_row(
            f"{use.bucket['tokens']:,}", f"{use.bucket['requests']:,}", steps,
            f"{100 * use.share:.1f}%", Bar(most, 0, use.share, width=BAR),
            f"{100 * padding(use.stretch):.0f}%", Bar(1.0, 0, padding(use.stretch), width=BAR // 2),
        )  # fmt: skip
    console.print(table)
    return console.export_text()


def summary(made: Planned) -> list[str]:
    """What was planned for, and what comes of it, in sentences."""
    limits, plan, usual = made.plan.limits, made.plan, made.usual
    per_request = f", {limits.threshold:,} of one request among others" if limits.threshold else ""
    if made.lengths is None:
        load = "No lengths were given: every scale of tokens and requests is taken as equally likely."
    else:
        prompt, answer = made.lengths.means()
        load = f"Lengths of {made.lengths.requests:,.0f} requests from {made.lengths.source}: prompts of {prompt:,.0f} tokens, answers of {answer:,.0f}."
    count, seconds = len(plan.buckets), made.costs.seconds
    return [
        f"{made.model} for {made.target}: steps of up to {limits.tokens:,} tokens{per_request}, and {limits.requests:,} requests.",
        load,
        f"{count} programs, about {count * seconds:.1f} s to compile and {count * made.costs.program_bytes / 1e6:.1f} MB: "
        f"{100 * padding(plan.stretch):.1f}% of the time is padding.",
        f"Sizes that double would be {len(usual)} programs, about {len(usual) * seconds:.1f} s, and {100 * padding(made.usual_stretch):.1f}%.",
        f"Proven: each of the {made.proof.steps:,} steps that the scheduler can ask for has a program.",
    ]


def padding(stretch: float) -> float:
    """The part of the time that is padding, of how many times as long steps take."""
    return max(0.0, 1 - 1 / stretch)


def steps_of(made: Planned) -> list[str]:
    """For each program, the ranges of the proof that name it, in short; the smallest and the largest step of it."""
    found = []
    for bucket in made.plan.buckets:
        ranges = [one for one in made.proof.ranges if one.bucket == bucket]
        if not ranges:
            found.append("none: others before it hold them")
            continue
        requests = min(one.requests[0] for one in ranges), max(one.requests[1] for one in ranges)
        tokens = min(one.tokens[0] for one in ranges), max(one.tokens[1] for one in ranges)
        found.append(f"{_ends(tokens)} tokens, {_ends(requests)} requests")
    return found


def _ends(ends: tuple[int, int]) -> str:
    return f"{ends[0]:,}" if ends[0] == ends[1] else f"{ends[0]:,} to {ends[1]:,}"
