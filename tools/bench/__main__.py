"""`python -m fxhlo.tools.bench`: the tables on standard output, progress on standard error, Markdown and a picture in build/bench."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from ..console import put, run, say
from ..prepare_model import prepare
from . import attention_tpu, cache_size, considered_tpu, lowering, sampling_tpu, serving, tpu

OUT = Path("build") / "bench"

COMPILED: dict[str, Any] = {"sampling-tpu": sampling_tpu, "considered-tpu": considered_tpu, "lowering": lowering}
"""Parts that need no model: what the compiler says of programs, and how long lowering takes beside the peers."""

app = typer.Typer(add_completion=False)


@app.command()
def bench(
    fast: bool = typer.Option(False, "--fast", help="Shorter answers and fewer rounds."),
    dtype: str = typer.Option("bfloat16", help="bfloat16, float16 or float32."),
    as_json: bool = typer.Option(False, "--json", help="The figures as JSON instead of tables."),
    only: str = typer.Option(
        "",
        help="One part: serving, cache, tpu, lowering, or one of attention-tpu, sampling-tpu and considered-tpu (kernels considered).",
    ),
) -> None:
    """Measures fxhlo beside vLLM's own CPU backend on SmolLM2-135M-Instruct, in one run on this machine; then
    compiles Llama 3.1 8B's steps for TPUs beside torchax (no TPU is needed, nothing is timed).

    Both engines are alive at once and measured in turn; a figure is the median over rounds after a warm-up, and a ratio
    the median of the rounds' ratios. Takes about ten minutes (--fast: five), most of it the peer's start.
    """
    if only == "attention-tpu":
        cycles = attention_tpu.measure(say)
        put(json.dumps([asdict(row) for row in cycles], indent=2) if as_json else _text(attention_tpu.table(cycles)))
        return
    if only in COMPILED:
        found = COMPILED[only].measure(say)
        table = COMPILED[only].table(found)
        put(json.dumps([asdict(row) for row in found], indent=2) if as_json else _text(table))
        return
    model = prepare(say=say)
    rows = (
        serving.measure(model, dtype, serving.FAST if fast else serving.Sizes(), say) if only in ("", "serving") else []
    )
    sizes = cache_size.measure(model, dtype, say) if only in ("", "cache") else []
    steps = tpu.measure(say, fast=fast) if only in ("", "tpu") else []
    figures = {
        "model": model.name, "dtype": dtype, "cores": len(os.sched_getaffinity(0)), "processor": _processor(),
        "serving": [asdict(row) for row in rows], "cache": [asdict(size) for size in sizes],
        "tpu": [asdict(step) for step in steps],
    }  # fmt: skip
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    for name, text in (("serving", _serving_page(rows, figures)), ("cache", _cache_page(sizes))):
        if text:
            (OUT / f"{name}.md").write_text(text)
            say(f"as Markdown: {OUT / name}.md")
    if rows:
        _plot(rows, OUT / "serving.png")
    put(json.dumps(figures, indent=2) if as_json else _tables(rows, sizes, steps, dtype))


def _tables(rows: list[serving.Measure], sizes: list[cache_size.CacheSize], steps: list[tpu.Figure], dtype: str) -> str:
    console = Console(width=132 if steps else 100, record=True, file=open(os.devnull, "w"))
    if rows:
        table = Table("", "unit", serving.OURS, serving.PEER, "times better", title=f"SmolLM2-135M-Instruct, {dtype}")
        for row in rows:
            digits = 1 if row.unit == "s" else 0
            figures = (f"{value:,.{digits}f}" for value in (row.ours, row.peer))
            table.add_row(row.what, row.unit, *figures, f"{row.ratio:.2f}")
        console.print(table)
    if sizes:
        table = Table(
            "KV cache", "updated in place", "temporaries", "a step of 8 rows", title="Time against the cache's size"
        )
        for size in sizes:
            megabytes = (size.megabytes, size.aliased_megabytes, size.temporary_megabytes)
            table.add_row(*(f"{value:,.0f} MB" for value in megabytes), f"{size.step_ms:.1f} ms")
        console.print(table)
    for table in tpu.tables(steps):
        console.print(table)
    return console.export_text()


def _serving_page(rows: list[serving.Measure], figures: dict[str, Any]) -> str:
    """The serving table in Markdown, with the machine below it; empty where nothing was measured."""
    if not rows:
        return ""
    lines = [
        f"| {figures['model']}, {figures['dtype']} | {serving.OURS} | {serving.PEER} | times better |",
        "|---|---:|---:|---:|",
    ]
    for row in rows:
        ours, peer = (
            f"{value:,.1f} s" if row.unit == "s" else f"{value:,.0f} tokens/s" for value in (row.ours, row.peer)
        )
        lines.append(f"| {row.what} | {ours} | {peer} | {row.ratio:.2f} |")
    rounds = max(row.rounds for row in rows)
    lines += [
        "",
        f"{figures['cores']} cores of {figures['processor']}; medians of {rounds} rounds, both engines in turn in one run.",
    ]
    return "\n".join(lines) + "\n"


def _cache_page(sizes: list[cache_size.CacheSize]) -> str:
    if not sizes:
        return ""
    lines = ["| KV cache | updated in place | temporaries | a step of 8 rows |", "|---:|---:|---:|---:|"]
    for size in sizes:
        megabytes = (size.megabytes, size.aliased_megabytes, size.temporary_megabytes)
        lines.append("| " + " | ".join([*(f"{value:,.0f} MB" for value in megabytes), f"{size.step_ms:.1f} ms"]) + " |")
    return "\n".join(lines) + "\n"


def _processor() -> str:
    """The processor's name as the kernel gives it, or the machine's kind."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def _text(table: Table) -> str:
    console = Console(width=120, record=True, file=open(os.devnull, "w"))
    console.print(table)
    return console.export_text()


def _plot(rows: list[serving.Measure], path: Path) -> None:
    """Bars: how many times better than the peer; 1 is as good."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.45 * len(rows) + 1.2), layout="constrained")
    ratios = [row.ratio for row in rows]
    bars = axes.barh([row.what for row in rows], ratios, color=["#2a7" if ratio >= 1 else "#c53" for ratio in ratios])
    axes.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=3)
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel(f"times better than {serving.PEER}")
    axes.margins(x=0.1)
    figure.savefig(path, dpi=120)
    say(f"picture: {path}")


def main() -> None:
    """The entry of `python -m`."""
    raise SystemExit(run(app, sys.argv[1:], "make bench"))


if __name__ == "__main__":
    main()
