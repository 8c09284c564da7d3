"""`python -m fxhlo.tools.bench`: tables on standard output, progress on standard error, a picture in build/bench; records in docs/bench."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from ..console import put, run, say
from ..prepare_model import prepare
from . import (
    cache_size,
    changes,
    considered_tpu,
    depth,
    host,
    latent_forms,
    load,
    loops,
    lowering,
    meshes_tpu,
    models,
    sampling_tpu,
    serving,
    startup,
    throughput,
    tpu,
)
from .kept import Kept
from .record import Record, records
from .tpu_kernels import measure as kernels_tpu

OUT = Path("build") / "bench"


@dataclass(frozen=True)
class Options:
    """What the command line asks of a part. dtype: of the model that is served. piece: of a part that is measured in pieces. isa: "avx2" keeps
    both engines to that, where a part knows it."""

    dtype: str
    fast: bool
    piece: str = ""
    isa: str = ""


@dataclass(frozen=True)
class Part:
    """One part of the bench. measure: gives rows (dataclasses); tables: shows them. default: whether it runs where no part is named.
    masks: whether it knows of instruction sets."""

    measure: Callable[[Options], Sequence[Any]]
    tables: Callable[[Sequence[Any]], Sequence[Table]]
    default: bool = False
    masks: bool = False


def _serve(options: Options) -> Sequence[Any]:
    sizes = serving.FAST if options.fast else serving.Sizes()
    return serving.measure(prepare(say=say), options.dtype, sizes, say)


def _throughput(name: str) -> Part:
    """A part of throughput.py."""
    return Part(
        lambda options: throughput.measure(name, options.dtype, options.isa, say, fast=options.fast),
        lambda rows: [throughput.table(rows, f"SmolLM2-135M's shape: {name}")],
        masks=True,
    )


PARTS: dict[str, Part] = {
    "serving": Part(_serve, lambda rows: [serving.table(rows)], default=True),
    **{name: _throughput(name) for name in throughput.PARTS},
    "load": Part(
        lambda options: load.measure(prepare(say=say), options.dtype, options.isa, say, fast=options.fast),
        lambda rows: [load.table(rows)],
        masks=True,
    ),
    "startup": Part(
        lambda options: startup.measure(prepare(say=say), options.dtype, say), lambda rows: startup.tables(list(rows))
    ),
    "cache": Part(
        lambda options: cache_size.measure(prepare(say=say), options.dtype, say),
        lambda rows: [cache_size.table(rows)],
        default=True,
    ),
    "host": Part(
        lambda options: host.measure(prepare(say=say), options.dtype, say),
        lambda rows: [host.table(rows)],
        default=True,
    ),
    "tpu": Part(lambda options: tpu.measure(say, fast=options.fast), lambda rows: tpu.tables(list(rows)), default=True),
    "models": Part(
        lambda options: models.measure(say, dtype=options.dtype, fast=options.fast),
        lambda rows: [models.table(list(rows))],
    ),
    "lowering": Part(lambda options: lowering.measure(say), lambda rows: [lowering.table(list(rows))]),
    "depth": Part(lambda options: depth.measure(say, options.piece), lambda rows: [depth.table(rows)]),
    "loop": Part(lambda options: loops.measure(say, options.piece), lambda rows: [loops.table(rows)]),
    "sampling-tpu": Part(lambda options: sampling_tpu.measure(say), lambda rows: [sampling_tpu.table(list(rows))]),
    "latent": Part(lambda options: latent_forms.measure(say), lambda rows: [latent_forms.table(list(rows))]),
    "considered-tpu": Part(
        lambda options: considered_tpu.measure(say), lambda rows: [considered_tpu.table(list(rows))]
    ),
}

KEPT: dict[str, Kept[Any]] = {"kernels-tpu": kernels_tpu.PART, "meshes-tpu": meshes_tpu.PART}
NAMES = (*PARTS, *KEPT)

app = typer.Typer(add_completion=False)


@app.command()
def bench(
    fast: bool = typer.Option(False, "--fast", help="Shorter answers and fewer rounds."),
    dtype: str = typer.Option("bfloat16", help="bfloat16, float16 or float32."),
    isa: str = typer.Option("", help="avx2 keeps both engines to it: decode, prefill, contexts and load."),
    as_json: bool = typer.Option(False, "--json", help="The figures as JSON instead of tables."),
    record: bool = typer.Option(
        False, "--record", help="Keep the figures in docs/bench, from which `make docs` writes docs/measured.md."
    ),
    piece: str = typer.Option(
        "", help="One row of `depth` or `loop`, as narrow-32, 405B-126 or cpu-16: the others are the record's."
    ),
    only: str = typer.Option("", help=f"One part: {', '.join(NAMES)}."),
    of: str = typer.Option("", help=f"Of {' and '.join(KEPT)}: only rows that have all of these words."),
    missing: bool = typer.Option(False, "--missing", help=f"Of {' and '.join(KEPT)}: only rows that the record lacks."),
) -> None:
    """Measures fxhlo beside vLLM's own CPU backend on SmolLM2-135M-Instruct, in one run on this machine; then
    compiles Llama 3.1 8B's steps for TPUs beside torchax (no TPU is needed, nothing is timed).

    Both engines are alive at once and measured in turn; a figure is the median over rounds after a warm-up, and a ratio the median of the
    rounds' ratios. What changed against the last record is printed below. Takes about ten minutes (--fast: five), most of it the peer's start.
    """
    if only and only not in NAMES:
        raise typer.BadParameter(f"{only!r} is no part of the bench; there are {', '.join(NAMES)}", param_hint="--only")
    if isa not in ("", "avx2") or (isa and not (only in PARTS and PARTS[only].masks)):
        known = ", ".join(name for name, part in PARTS.items() if part.masks)
        raise typer.BadParameter(f"{isa!r}: avx2, and one of the parts {known}", param_hint="--isa")
    if (of or missing) and only not in KEPT:
        raise typer.BadParameter(f"--of and --missing are of {' and '.join(KEPT)}", param_hint="--of")
    options = Options(dtype, fast, piece, isa)
    made = []
    if only in KEPT:
        kept = KEPT[only].run(only, of, missing=missing, record=record, say=say)
        made.append(Record.now(only, KEPT[only].tables(kept), kept))
        if not as_json:
            put(f"{_text(KEPT[only].tables(kept))}{made[-1].machine}\n")
    for name, part in PARTS.items():
        if name != only and (only or not part.default):
            continue
        rows = part.measure(options)
        tables = part.tables(rows)
        made.append(Record.now(_words(name, options), tables, rows))
        before = records().get(made[-1].part)
        if record:
            say(f"recorded: {made[-1].save()}")
        if name == "serving":
            _plot(list(rows), OUT / "serving.png")
        if not as_json:
            compared = [changes.table(made[-1], before)] if before else []
            put(f"{_text([*tables, *compared])}{made[-1].machine}\n")
    if as_json:
        put(json.dumps({one.part: list(one.rows) for one in made}, indent=2))


def _words(name: str, options: Options) -> str:
    """The part with the options that differ from the usual ones, as the command has them."""
    dtype = "" if options.dtype == "bfloat16" else f" --dtype {options.dtype}"
    isa = f" --isa {options.isa}" if options.isa else ""
    return f"{name}{dtype}{isa}{' --fast' if options.fast else ''}"


def _text(tables: Sequence[Table]) -> str:
    console = Console(width=132, record=True, file=open(os.devnull, "w"))
    for table in tables:
        console.print(table)
    return console.export_text()


def _plot(rows: list[serving.Measure], path: Path) -> None:
    """Bars: how many times better than the peer; 1 is as good."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
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
