"""Draws a plan: the programs as rectangles over the steps that the scheduler can ask for, both axes by their logarithm, and as a page with the table."""

from __future__ import annotations

from html import escape
from math import log2
from typing import TYPE_CHECKING

from ..report.page import STYLE, html_table
from .show import padding, steps_of, summary

if TYPE_CHECKING:
    from .planned import Planned

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 960, 480, 60, 44, 16, 16
ALONE = ("<style>text { font: 12px system-ui, sans-serif; fill: #1c2024 } .soft { fill: #60646c }"
         " svg { --a: #3b6fb6; --b: #e08e3c; --line: #d9dce1; --paper: #fff; background: #fff }</style>")  # fmt: skip


def svg(made: Planned) -> str:
    """The picture by itself."""
    return _drawn(made, ALONE)


def page(made: Planned) -> str:
    """The picture with its summary and table."""
    title = f"Plan of {made.model} for {made.target}"
    rows = [
        (
            f"{use.bucket['tokens']:,}", f"{use.bucket['requests']:,}", steps,
            f"{100 * use.share:.1f}%", f"{100 * padding(use.stretch):.0f}%",
        )
        for use, steps in zip(made.uses, steps_of(made), strict=True)
    ]  # fmt: skip
    table = html_table(("tokens", "requests", "steps that run in it", "part of the time", "padding"), rows)
    lines = "".join(f"<p>{escape(line)}</p>" for line in summary(made))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n'
        f"<body><h1>{escape(title)}</h1>\n{lines}\n{_drawn(made, '')}\n{table}\n</body></html>\n"
    )


def _drawn(made: Planned, style: str) -> str:
    """Each program from the origin to its size, the largest first, so that what is seen of it are its own steps; the expected load as dots."""
    limits = made.plan.limits
    right = log2(max(limits.tokens, 2))
    high = log2(max(limits.requests, 2))

    def x(tokens: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (log2(tokens) + 0.5) / (right + 0.5)

    def y(requests: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (log2(requests) + 0.5) / (high + 0.5)

    base = y(2**-0.5)
    parts = []
    for place, (use, steps) in enumerate(reversed(list(zip(made.uses, steps_of(made), strict=True)))):
        tokens, requests = use.bucket["tokens"], use.bucket["requests"]
        tip = f"{use.bucket}: {steps}; {100 * use.share:.1f}% of the time, {100 * padding(use.stretch):.0f}% padding"
        shade = "var(--a)" if place % 2 else "var(--b)"
        parts.append(
            f'<rect x="{LEFT}" y="{y(requests):.1f}" width="{x(tokens) - LEFT:.1f}" height="{base - y(requests):.1f}" '
            f'fill="var(--paper)"/><rect x="{LEFT}" y="{y(requests):.1f}" width="{x(tokens) - LEFT:.1f}" '
            f'height="{base - y(requests):.1f}" fill="{shade}" fill-opacity="0.35" stroke="{shade}"><title>{escape(tip)}</title></rect>'
            f'<text x="{x(tokens) - 4:.1f}" y="{y(requests) + 13:.1f}" text-anchor="end">{tokens:,} x {requests:,}</text>'
        )
    most = max(made.load.values())
    for (tokens, requests), share in made.load.items():
        parts.append(
            f'<circle cx="{x(tokens):.1f}" cy="{y(requests):.1f}" r="{1 + 5 * (share / most) ** 0.5:.1f}" fill="currentColor" fill-opacity="0.25"/>'
        )
    parts += [
        f'<text class="soft" x="{x(size):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{size:,}</text>'
        for size in _powers(limits.tokens)
    ]
    parts += [
        f'<text class="soft" x="{LEFT - 6}" y="{y(size) + 4:.1f}" text-anchor="end">{size:,}</text>'
        for size in _powers(limits.requests)
    ]
    parts.append(
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">tokens of a step; dots: the expected load</text>'
    )
    parts.append(f'<text x="{LEFT}" y="{TOP - 4}">requests</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="programs by tokens and requests">'
        f"{style}{''.join(parts)}</svg>"
    )


def _powers(largest: int) -> list[int]:
    return [2**power for power in range(largest.bit_length())]
