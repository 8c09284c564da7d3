"""docs/gpu.json, what the last run on a GPU measured, and docs/gpu.md of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "docs" / "gpu.json"
PAGE = RECORD.with_suffix(".md")
Json = Mapping[str, Any]
HEAD = (
    "<!-- written by `make docs` of docs/gpu.json; do not edit -->\n",
    "# On a GPU\n",
    "`make gpu` writes docs/gpu.json on a machine with one ([quickstart_gpu.md](quickstart_gpu.md)): kernels beside their references, one layer's paged",
    "attention with several sizes, and the decode step of Llama 3.1 8B (64 requests, 1,024 tokens of context, random weights) beside transformers.\n",
)
NOTHING = """\
**Not measured yet**: no GPU was there since this was written. Without one, every kernel was compared with its reference in Pallas' interpreter, and XLA
compiled it for an H100 ([kernels.md](kernels.md)).
"""


def read(path: Path = RECORD) -> Json | None:
    """The last run; None where there was none yet: the file says null."""
    return json.loads(path.read_text())


def page(found: Json | None) -> str:
    """Markdown."""
    if found is None:
        return "\n".join([*HEAD, NOTHING])
    here = found["here"]
    lines = [f"{found['date']}, {here['card']}, jaxlib {here['jaxlib']}, Python {here['python']}.\n"]
    for part in ("step", "peer", "attention", "kernels"):
        outcome = found["parts"].get(part)
        if outcome is None:
            continue
        lines += [f"## {TITLES[part]}\n"]
        if outcome["problem"]:
            lines.append(f"**It failed**: {outcome['problem']}\n")
        if outcome["rows"]:
            lines += [*_table(part, outcome["rows"]), ""]
    return "\n".join([*HEAD, *lines])


TITLES = {
    "step": "The decode step",
    "peer": "The same by transformers",
    "attention": "Paged attention of one layer",
    "kernels": "Kernels beside their references",
}


def _table(part: str, rows: Sequence[Json]) -> list[str]:
    head, cells = TABLES[part]
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(cells(row))} |" for row in rows)]


def _step(row: Json) -> list[str]:
    same = "" if row["same_tokens"] is None else f"{row['same_tokens']:.0%}"
    kernels = ", ".join(f"{name.removeprefix('fxhlo.')}: {became}" for name, became in row["kernels"].items())
    return [row["form"], _ms(row["step"]), f"{row['compile']:.1f}", f"{row['temporaries'] / 2**20:,.0f}", same, kernels]


def _attention(row: Json) -> list[str]:
    rate = "" if row["seconds"] is None else f"{row['bytes'] / row['seconds'] / 1e9:,.0f}"
    return [row["tiles"], _ms(row["seconds"], 3), rate, row["problem"]]


def _kernel(row: Json) -> list[str]:
    apart = "" if row["difference"] is None else f"{row['difference']:.1g}"
    right = apart if row["right"] else f"**{apart or row['problem']}**"
    return [row["kernel"], row["case"], row["implementation"], right, f"{row['tolerance']:g}"]


def _ms(seconds: float | None, digits: int = 1) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.{digits}f}"


TABLES: Mapping[str, tuple[Sequence[str], Any]] = {
    "step": (("form", "ms a step", "compile, s", "temporaries, MiB", "same tokens as the first", "composites"), _step),
    "peer": (("form", "ms a step", "problem"), lambda row: [row["form"], _ms(row["seconds"]), row["problem"]]),
    "attention": (("sizes", "ms", "GB/s", "problem"), _attention),
    "kernels": (("kernel", "case", "implementation", "difference", "allowed"), _kernel),
}
