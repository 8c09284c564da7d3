"""Renders a `StepReport` as one self-contained HTML page, with inline SVG and support for dark mode."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from .report import Fit, Row, StepReport
from .show import figures, shortened, summary, time, verdict
from .units import Unit

STYLE = """
:root { --ink: #1c2024; --soft: #60646c; --line: #d9dce1; --paper: #fff; --good: #2b8a5e; --bad: #c8382f;
  --a: #3b6fb6; --b: #e08e3c; --c: #7d62b5; --d: #58a593; --e: #9aa2ad; --pale: #bcd0ec; }
@media (prefers-color-scheme: dark) { :root { --ink: #edeef0; --soft: #a5abb5; --line: #3a3f47; --paper: #16181b;
  --pale: #35527e; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
.verdict { font-size: 1.1rem; font-weight: 600; } .fits { color: var(--good); } .short { color: var(--bad); }
p.soft, td.soft { color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-size: .87rem; } 
th, td { padding: .25rem .5rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; white-space: pre-line; }
th:first-child, td:first-child, td.left, th.left { text-align: left; } td:first-child { overflow-wrap: anywhere; }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font: 12px system-ui, sans-serif; } svg text.soft { fill: var(--soft); }
"""
WIDTH, LEFT, RIGHT, BAR = 960, 330, 130, 22


def page(reports: Sequence[StepReport], model: str) -> str:
    """The page of one model, a section per bucket."""
    title = f"{model} for {reports[0].target}" if reports else model
    body = "\n".join(_section(report) for report in reports)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n'
        f"<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def _section(report: StepReport) -> str:
    state = "fits" if report.fit.fits else "short"
    parts = [
        f'<p class="soft">{escape(report.name)}</p>',
        f'<p class="verdict {state}">{escape(verdict(report.fit))}</p>',
        _memory(report.fit),
        *(f"<p>{escape(line)}</p>" for line in summary(report.total)),
        "<h2>Where the time goes, by module</h2>",
        _bars(report.paths),
        _table(report.paths),
    ]
    if report.kinds:
        parts += ["<h2>By kind of op</h2>", _bars(report.kinds), _table(report.kinds)]
    parts += ["<h2>Composites</h2>", _composites(report)]
    return "\n".join(parts)


def _memory(fit: Fit) -> str:
    """A bar of the memory needed over one of the memory there is."""
    parts = [
        ("weights", fit.weights, "--a"), ("KV caches", fit.caches, "--b"), ("inputs", fit.inputs, "--c"),
        ("temporaries", fit.temporaries or 0, "--d"), ("program", fit.program or 0, "--e"),
    ]  # fmt: skip
    unit = Unit.of_bytes((fit.needed, fit.available))
    whole = max(fit.needed, fit.available, 1)
    scale = WIDTH / whole
    drawn, x = [], 0.0
    for name, size, colour in parts:
        tip = f"<title>{name}: {unit.of(size)}</title>"
        drawn.append(
            f'<rect x="{x:.1f}" y="4" width="{size * scale:.1f}" height="26" fill="var({colour})">{tip}</rect>'
        )
        x += size * scale
    edge = fit.available * scale
    drawn.append(f'<line x1="{edge:.1f}" y1="0" x2="{edge:.1f}" y2="40" stroke="var(--ink)" stroke-width="2"/>')
    anchor = "end" if edge > WIDTH / 2 else "start"
    drawn.append(
        f'<text x="{edge + (-6 if anchor == "end" else 6):.1f}" y="46" text-anchor="{anchor}">memory of one device: {unit.of(fit.available)}</text>'
    )
    legend, x = [], 0.0
    for name, size, colour in parts:
        if size:
            label = f"{name} {unit.of(size)}"
            legend.append(
                f'<rect x="{x:.0f}" y="58" width="11" height="11" fill="var({colour})"/><text x="{x + 16:.0f}" y="68">{label}</text>'
            )
            x += 40 + 6.6 * len(label)
    return f'<svg viewBox="0 0 {WIDTH} 76" role="img" aria-label="memory">{"".join(drawn + legend)}</svg>'


def _bars(rows: Sequence[Row]) -> str:
    """A bar per row of its time as compiled, with the roofline over it."""
    whole = sum(time(row) for row in rows)
    shown = [row for row in shortened(rows) if time(row) > whole / 2000]  # the table lists all rows
    longest = max((max(time(row), row.roofline) for row in shown), default=1.0) or 1.0
    scale = (WIDTH - LEFT - RIGHT) / longest
    unit = Unit.of_seconds((longest,))
    drawn = []
    for place, row in enumerate(shown):
        y = place * (BAR + 5)
        name = row.name if len(row.name) < 50 else "..." + row.name[-46:]
        drawn.append(f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        drawn.append(f'<rect x="{LEFT}" y="{y}" width="{time(row) * scale:.1f}" height="{BAR}" fill="var(--pale)"/>')
        if row.roofline:
            tip = f"<title>roofline {unit.of(row.roofline)}</title>"
            drawn.append(
                f'<rect x="{LEFT}" y="{y + 5}" width="{row.roofline * scale:.1f}" height="{BAR - 10}" fill="var(--a)">{tip}</rect>'
            )
        end = LEFT + max(time(row), row.roofline) * scale + 6
        drawn.append(f'<text class="soft" x="{end:.1f}" y="{y + 15}">{unit.of(time(row))}</text>')
    height = max(len(shown), 1) * (BAR + 5)
    note = '<p class="soft">Dark: the roofline of what the model must do. Pale: the bound of what the compiled program does.</p>'
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="time by name">{"".join(drawn)}</svg>{note}'


def _table(rows: Sequence[Row]) -> str:
    return html_table(*figures(rows))


def _composites(report: StepReport) -> str:
    lines = [
        (one.kernel, str(one.count), one.became, "\n".join(one.reasons), one.operands) for one in report.composites
    ]
    return html_table(("composite", "count", "became", "why not another", "operands"), lines, left=True)


def html_table(head: Sequence[str], lines: Iterable[Sequence[str]], *, left: bool = False) -> str:
    """A table of plain text. left: whether all columns are aligned there, not the first one alone."""
    mark = ' class="left"' if left else ""
    top = "".join(f"<th{mark}>{escape(cell)}</th>" for cell in head)
    rows = "".join("<tr>" + "".join(f"<td{mark}>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table>"
