"""Where the time of a start goes, a first one and a second one, beside vLLM's own CPU backend: stages of both processes, in the order in which they begin,
of `vllm.LLM`; and the time from the command `vllm serve` to its first answer.

Each engine is started twice with the timers of stages.py, which time the same functions of vLLM's in both. A row is a stage's own time, without
that of stages within it; what takes less than a twentieth of a second is summed up, and `between the stages` is what no stage has.
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep

from rich.table import Table

from . import stages
from .engine import BenchError, Engine, variables_of
from .serving import OURS, PEER, build_native

LEAST = 0.05
"""Seconds of a stage that has a row of its own."""
STARTS = ("first", "second")
COMMAND = "vllm serve, {}"
ANSWER = "from the command to the first answer"
LONGEST = 600.0
"""Seconds that a server may take to answer."""


@dataclass(frozen=True)
class Stage:
    """One row, in seconds; None where that engine has no such stage. start: "first" or "second", of COMMAND or alone. process: "front" or "engine"."""

    start: str
    process: str
    stage: str
    ours: float | None
    peer: float | None


def measure(model: Path, dtype: str, say: Callable[[str], None]) -> list[Stage]:
    """Starts both engines twice, in turn. say: gets a line of progress."""
    arguments: dict[str, object] = {
        "model": str(model), "dtype": dtype, "max_model_len": 1024, "max_num_seqs": 32, "max_num_batched_tokens": 1024,
        "enable_prefix_caching": False, "seed": 0, "disable_log_stats": True,
    }  # fmt: skip
    rows: list[Stage] = []
    with tempfile.TemporaryDirectory(prefix="fxhlo-bench-") as folder:
        cache = Path(folder)
        build_native(cache)
        for start in STARTS:
            ours = started(OURS, arguments, cache, fxhlo=True)
            peer = started(PEER, arguments, cache, fxhlo=False)
            say(f"{start} start to first token: {OURS} {sum(ours.values()):.1f} s, {PEER} {sum(peer.values()):.1f} s")
            rows += [Stage(start, *key, ours.get(key), peer.get(key)) for key in dict.fromkeys((*ours, *peer))]
    with tempfile.TemporaryDirectory(prefix="fxhlo-bench-") as folder:
        cache = Path(folder)
        build_native(cache)
        for start in STARTS:
            seconds = [served(arguments, cache, fxhlo=fxhlo) for fxhlo in (True, False)]
            say(f"{COMMAND.format(start)} start: {OURS} {seconds[0]:.1f} s, {PEER} {seconds[1]:.1f} s")
            rows.append(Stage(COMMAND.format(start), "both", ANSWER, *seconds))
    return rows


def served(arguments: Mapping[str, object], cache: Path, *, fxhlo: bool) -> float:
    """Seconds from the start of `vllm serve` to its first completion of one token. Raises BenchError where the server ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {name: value for name, value in arguments.items() if name not in ("model", "disable_log_stats")}
    flags = [
        f"--{'no-' if value is False else ''}{name.replace('_', '-')}{'' if isinstance(value, bool) else f'={value}'}"
        for name, value in options.items()
    ]
    command = [
        str(Path(sys.executable).with_name("vllm")),
        "serve",
        str(arguments["model"]),
        "--port",
        str(port),
        *flags,
    ]
    with tempfile.TemporaryDirectory(prefix="fxhlo-bench-peer-") as hidden, tempfile.TemporaryFile() as log:
        variables = variables_of(Path(hidden), fxhlo=fxhlo, cache=cache)
        began = perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=log, env=variables)
        try:
            while not _answers(port, str(arguments["model"])):
                if process.poll() is not None or perf_counter() - began > LONGEST:
                    log.seek(0)
                    said = log.read().decode(errors="replace").strip().splitlines()[-8:]
                    raise BenchError("vllm serve gave no answer:\n  " + "\n  ".join(said))
                sleep(0.02)
            return perf_counter() - began
        finally:
            process.terminate()
            process.wait()


def _answers(port: int, model: str) -> bool:
    """Whether a completion of one token comes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    request = {"model": model, "prompt": [1, 2, 3], "max_tokens": 1, "temperature": 0}
    try:
        connection.request("POST", "/v1/completions", json.dumps(request), {"Content-Type": "application/json"})
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def started(name: str, arguments: dict[str, object], cache: Path, *, fxhlo: bool) -> dict[tuple[str, str], float]:
    """Seconds by (process, stage) of one start, which add up to the time to the first token."""
    with tempfile.TemporaryDirectory(prefix="fxhlo-stages-") as folder:
        source = Path(stages.__file__).read_text().replace('FOLDER = ""', f"FOLDER = {folder!r}", 1)
        with Engine(name, arguments, fxhlo=fxhlo, cache=cache, first=source) as engine:
            seconds = engine.first_token()
            began = engine.started
        return summed(list(Path(folder).glob("*.spans")), began, began + seconds)


def summed(files: Iterable[Path], began: float, end: float) -> dict[tuple[str, str], float]:
    """Own seconds by process and stage, of spans that began between these times. The front's wait for the engine is the engine's own time."""
    found: dict[tuple[str, str], float] = {}
    small: dict[str, float] = {}
    for process, spans in _processes(files):
        for stage, seconds in _own(spans, began, end).items():
            if stage == stages.WAITS:
                continue
            if seconds < LEAST:
                small[process] = small.get(process, 0.0) + seconds
            else:
                found[process, stage] = found.get((process, stage), 0.0) + seconds
    for process, seconds in small.items():
        found[process, f"less than {LEAST} s each"] = seconds
    found["both", "between the stages"] = end - began - sum(found.values())
    return found


def _processes(files: Iterable[Path]) -> list[tuple[str, list[Mapping[str, object]]]]:
    """The front's spans, and those of the engine: processes that only help, such as a compiler's, are left out."""
    read = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    read.sort(key=lambda lines: lines[0]["began"])
    named: list[tuple[str, list[Mapping[str, object]]]] = []
    for lines in read:
        spans = lines[1:]
        if not named:
            named.append(("front", spans))
        elif any(span["name"] == "engine core" for span in spans):
            named.append(("engine", spans))
    return named


def _own(spans: Sequence[Mapping[str, object]], began: float, end: float) -> dict[str, float]:
    """Own seconds by stage, in the order in which they first begin; threads beside the main one take none of its time."""
    totals: dict[str, float] = {}
    for span in sorted(spans, key=lambda one: float(str(one["begin"]))):
        if not span["aside"] and began <= float(str(span["begin"])) < end:
            totals[str(span["name"])] = totals.get(str(span["name"]), 0.0) + float(str(span["own"]))
    return totals


def tables(rows: Sequence[Stage]) -> list[Table]:
    """A table for each start."""
    made = []
    for start in (*STARTS, *(COMMAND.format(start) for start in STARTS)):
        some = [row for row in rows if row.start == start]
        table = Table("process", "stage", f"{OURS}, s", f"{PEER}, s", title=f"{start} start to the first token")
        for column in table.columns[2:]:
            column.justify = "right"
        for row in some:
            table.add_row(
                row.process, row.stage, *("" if value is None else f"{value:.2f}" for value in (row.ours, row.peer))
            )
        table.add_section()
        table.add_row("", "all", *(f"{sum(getattr(row, one) or 0 for row in some):.2f}" for one in ("ours", "peer")))
        made.append(table)
    return made
