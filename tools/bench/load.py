"""A mixed load by vLLM's own client, `vllm bench serve`, against `vllm serve` with our engine and with vLLM's own CPU backend.

Both servers are alive and loaded in turn, each round with the same requests in both: prompts and answers of lengths that differ by half,
and at most `CONCURRENT` at a time. Figures are medians over rounds of what the client reports.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from .engine import BenchError, variables_of
from .serving import OURS, PEER
from .throughput import first_of_peer, ours_with, peer_with

PROMPT, ANSWER, SPREAD = 256, 64, 0.5
"""Mean tokens of each, and by which part of it they differ in both directions."""
CONCURRENT = 16
START_SECONDS = 600
VLLM = Path(sys.executable).with_name("vllm")


@dataclass(frozen=True)
class Sizes:
    """requests of a round; rounds after a warm-up."""

    requests: int = 160
    rounds: int = 3


FAST = Sizes(requests=48, rounds=2)
FIGURES: Mapping[str, tuple[str, str, bool]] = {
    "total_token_throughput": ("prompt and answer tokens", "tokens/s", True),
    "output_throughput": ("answer tokens", "tokens/s", True),
    "median_ttft_ms": ("time to the first token, median", "ms", False),
    "p99_ttft_ms": ("time to the first token, p99", "ms", False),
    "median_itl_ms": ("time between tokens, median", "ms", False),
    "p99_itl_ms": ("time between tokens, p99", "ms", False),
}
"""The client's name of a figure -> what it is, its unit, and whether more is better."""


@dataclass(frozen=True)
class Row:
    """One figure, medians over rounds. ratio: how many times better ours is, the median of the rounds' ratios."""

    what: str
    unit: str
    ours: float
    peer: float
    ratio: float


class Server:
    """with Server(...) as server: server.load(requests, seed) -> figures. A `vllm serve` process."""

    def __init__(self, name: str, model: Path, dtype: str, environment: Mapping[str, str]) -> None:
        self._name, self._model = name, model
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = str(free.getsockname()[1])
        self._log = tempfile.TemporaryFile()
        self._environment = dict(environment)
        command = [
            str(VLLM), "serve", str(model), "--host", "127.0.0.1", "--port", self._port, "--dtype", dtype, "--max-model-len", "1024",
            "--max-num-seqs", str(CONCURRENT), "--max-num-batched-tokens", "1024", "--no-enable-prefix-caching", "--seed", "0",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command, stdout=self._log, stderr=self._log, env=self._environment, start_new_session=True
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # the session that was begun for it
        self._process.wait()
        self._log.close()

    def wait(self) -> None:
        """Until it answers. Raises BenchError with its last lines where it does not."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health", timeout=5):
                return
            time.sleep(0.5)
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines()[-8:]
        raise BenchError(f"the server of {self._name} does not answer:\n  " + "\n  ".join(said))

    def load(self, requests: int, seed: int) -> dict[str, float]:
        """Figures of one run of the client. seed: of its random prompts and lengths."""
        with tempfile.TemporaryDirectory(prefix="fxhlo-load-") as folder:
            command = [
                str(VLLM), "bench", "serve", "--backend", "openai", "--base-url", f"http://127.0.0.1:{self._port}", "--model", str(self._model),
                "--dataset-name", "random", "--random-input-len", str(PROMPT), "--random-output-len", str(ANSWER),
                "--random-range-ratio", str(SPREAD), "--num-prompts", str(requests), "--max-concurrency", str(CONCURRENT), "--ignore-eos",
                "--seed", str(seed), "--percentile-metrics", "ttft,itl", "--metric-percentiles", "99", "--disable-tqdm",
                "--save-result", "--result-dir", folder, "--result-filename", "result.json",
            ]  # fmt: skip
            done = subprocess.run(command, env=self._environment, capture_output=True, text=True)
            result = Path(folder) / "result.json"
            if done.returncode or not result.exists():
                raise BenchError(f"vllm bench serve failed against {self._name}: {done.stderr.strip()[-600:]}")
            found: dict[str, Any] = json.loads(result.read_text())
        if found["completed"] != requests:
            raise BenchError(f"{self._name} answered {found['completed']} of {requests} requests")
        return {name: float(found[name]) for name in FIGURES}


def measure(model: Path, dtype: str, isa: str, say: Callable[[str], None], *, fast: bool) -> list[Row]:
    """Starts both servers and loads them in turn. isa: as in throughput.py."""
    sizes = FAST if fast else Sizes()
    with tempfile.TemporaryDirectory(prefix="fxhlo-bench-") as folder:
        cache, hidden = Path(folder), Path(folder) / "peer"
        hidden.mkdir()
        (cache / "ours").mkdir()
        environments = (
            variables_of(cache / "ours", fxhlo=True, cache=cache) | ours_with(isa),
            variables_of(hidden, fxhlo=False, cache=cache, first=first_of_peer(isa)) | peer_with(isa),
        )
        with Server(OURS, model, dtype, environments[0]) as ours, Server(PEER, model, dtype, environments[1]) as peer:
            ours.wait()
            peer.wait()
            ours.load(sizes.requests, 0), peer.load(sizes.requests, 0)
            pairs = []
            for seed in range(1, sizes.rounds + 1):
                pairs.append((ours.load(sizes.requests, seed), peer.load(sizes.requests, seed)))
                mine, theirs = (one["total_token_throughput"] for one in pairs[-1])
                say(f"round {seed}: {OURS} {mine:,.0f}, {PEER} {theirs:,.0f} tokens a second")
    return [_row(name, pairs) for name in FIGURES]


def table(rows: Sequence[Row]) -> Table:
    """A row per figure."""
    title = f"Requests of about {PROMPT} and {ANSWER} tokens, {CONCURRENT} at a time, by `vllm bench serve`"
    made = Table("", "unit", OURS, PEER, "times better", title=title)
    for row in rows:
        made.add_row(row.what, row.unit, f"{row.ours:,.0f}", f"{row.peer:,.0f}", f"{row.ratio:.2f}")
    return made


def _row(name: str, pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> Row:
    what, unit, more = FIGURES[name]
    both = [(mine[name], theirs[name]) for mine, theirs in pairs]
    ratio = statistics.median(mine / theirs if more else theirs / mine for mine, theirs in both)
    mine, theirs = (statistics.median(column) for column in zip(*both, strict=True))
    return Row(what, unit, mine, theirs, ratio)
