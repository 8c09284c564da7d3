"""Times the lowering of an exported, decomposed 32-layer decoder to StableHLO by fxhlo, torchax and torch-mlir in one run.

The decoder is transformers' Llama with random weights. Each lowering runs in a process of its own, where torch exports
and decomposes the model first (a program that was saved and loaded again lacks attributes that torchax reads); then come a
warm-up and rounds; a figure is their median.
Memory is the peak of a round minus the memory before it, for two widths of the model: the graph is the same, the weights grow.

fxhlo's stages are measured by sampling: a thread reads the lowering thread's stack a thousand times a second over some
rounds, which neither slows down Python's calls as a profiler does nor needs timers in the code.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, process_time, sleep
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.table import Table

from .peers import PEERS, PeerError, environment

if TYPE_CHECKING:
    from torch.export import ExportedProgram

LAYERS = 32
WIDTHS = (256, 512)
"""Hidden sizes: the second has four times the weights (torch-mlir holds them several times)."""

OURS = "fxhlo"
STAGES = (
    "take the program",
    "passes",
    "contract",
    "reference tracing",
    "rules",
    "building ops (MLIR)",
    "walk and checks",
    "verify",
    "bytecode",
)
INTERVAL = 0.001


@dataclass(frozen=True)
class Sizes:
    """Rounds after the warm-up, of fxhlo and of each peer (which take a minute)."""

    ours: int = 9
    peers: int = 3


SIZES = Sizes()


@dataclass(frozen=True)
class Lowering:
    """One way and one width. seconds: the median round; memory in MB above what the process held before the round."""

    way: str
    width: int
    weights_mb: float
    nodes: int
    seconds: float | None
    cpu_seconds: float | None
    """CPU time of all threads, which is steadier on a shared machine."""
    rounds: int
    peak_mb: float | None
    result_kb: float | None
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds of the median round by stage; fxhlo only."""
    problem: str = ""


# -- in the parent process --------------------------------------------------------------------------------------


def measure(say: Callable[[str], None], sizes: Sizes = SIZES, widths: tuple[int, ...] = WIDTHS) -> list[Lowering]:
    """One row per way and width."""
    rows = []
    for width in widths:
        for way in (OURS, *PEERS):
            row = _measured(way, width, sizes.ours if way == OURS else sizes.peers, say)
            said = row.problem or f"{row.seconds:.2f} s, {row.peak_mb:,.0f} MB more at the peak"
            say(f"{way}, {row.nodes} nodes, {width} wide, {row.weights_mb:,.0f} MB of weights: {said}")
            rows.append(row)
    return rows


def _measured(way: str, width: int, rounds: int, say: Callable[[str], None]) -> Lowering:
    try:
        variables = {**os.environ, "JAX_PLATFORMS": "cpu"} if way == OURS else environment(PEERS[way], say)
        answer = _child(way, width, rounds, variables)
    except PeerError as problem:
        answer = {"problem": str(problem), "weights_mb": 0.0, "nodes": 0}
    unknown: dict[str, Any] = dict.fromkeys(("seconds", "cpu_seconds", "peak_mb", "result_kb"))
    return Lowering(way=way, width=width, rounds=rounds, **(unknown | answer))


def _child(way: str, width: int, rounds: int, variables: dict[str, str]) -> dict[str, Any]:
    """Runs a process for `way` and returns its line of JSON."""
    command = [sys.executable, "-P", "-W", "ignore", "-m", "fxhlo.tools.bench.lowering", way, str(width), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    if done.returncode:
        raise PeerError(f"{way} ended with {done.returncode}:\n" + "\n".join(done.stderr.strip().splitlines()[-6:]))
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: list[Lowering]) -> Table:
    """A table of the rows, with the stages' times below each of fxhlo's."""
    made = Table(
        "", "wide", "weights", "seconds", "CPU seconds", "memory at the peak", "times fxhlo (CPU)",
        title=f"An exported, decomposed decoder of {LAYERS} layers ({max(row.nodes for row in rows)} FX nodes) to StableHLO",
    )  # fmt: skip
    ours = {row.width: row.cpu_seconds for row in rows if row.way == OURS}
    for row in rows:
        if row.seconds is None or row.cpu_seconds is None:
            made.add_row(row.way, str(row.width), "", row.problem.splitlines()[0])
            continue
        made.add_row(
            row.way, str(row.width), f"{row.weights_mb:,.0f} MB", f"{row.seconds:.2f}", f"{row.cpu_seconds:.2f}",
            f"+{row.peak_mb:,.0f} MB", f"{row.cpu_seconds / (ours.get(row.width) or row.cpu_seconds):.0f}",
        )  # fmt: skip
        for stage, seconds in row.stages.items():
            made.add_row(f"  {stage}", "", "", f"{seconds:.3f}")
    return made


# -- in the process of one way -------------------------------------------------------------------------------------


def export(width: int) -> ExportedProgram:
    """The decomposed program of a Llama of that width: grouped heads, rotary embedding, gated MLP, attention by SDPA."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=LAYERS, hidden_size=width, intermediate_size=11 * width // 4, vocab_size=1024,
        num_attention_heads=width // 32, num_key_value_heads=width // 128, max_position_embeddings=256, use_cache=False,
    )  # fmt: skip

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = LlamaForCausalLM(config).eval()
            for module in self.modules():
                module._non_persistent_buffers_set.clear()  # torch-mlir finds persistent buffers alone

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, use_cache=False).logits

    return torch.export.export(Logits(), (torch.arange(16)[None],), strict=False).run_decompositions()


def ways() -> dict[str, Callable[[ExportedProgram], int]]:
    """Each lowering to StableHLO, by name; it returns the size of its result in bytes."""

    def ours(exported: ExportedProgram) -> int:
        import fxhlo

        return len(fxhlo.lower(exported).bytecode)

    def torchax(exported: ExportedProgram) -> int:
        from .peers import import_torchax

        _, lowered = import_torchax().export.exported_program_to_stablehlo(exported)
        return len(lowered.mlir_module_serialized)

    def torch_mlir(exported: ExportedProgram) -> int:
        from torch_mlir import fx  # type: ignore[import-not-found]  # on the path of this process alone

        module = fx.export_and_import(exported, output_type="stablehlo")
        return len(str(module.operation.get_asm(large_elements_limit=8, large_resource_limit=8)))

    return {OURS: ours, "torchax": torchax, "torch-mlir": torch_mlir}


def run(way: str, width: int, rounds: int) -> dict[str, Any]:
    """Measures one lowering of one program."""
    exported = export(width)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in exported.state_dict.values())
    lower = ways()[way]
    size = lower(exported)
    seconds, cpu, peaks = [], [], []
    for _ in range(rounds):
        with _peak_memory() as peak:
            begun, worked = perf_counter(), process_time()
            lower(exported)
            seconds.append(perf_counter() - begun)
            cpu.append(process_time() - worked)
        peaks.append(peak[0])
    median = statistics.median(seconds)
    return {
        "weights_mb": weights / 1e6, "nodes": len(exported.graph.nodes), "seconds": median,
        "cpu_seconds": statistics.median(cpu),
        "peak_mb": statistics.median(peaks) / 1e6, "result_kb": size / 1e3,
        "stages": _stages(lambda: lower(exported), median) if way == OURS else {},
    }  # fmt: skip


@contextmanager
def _peak_memory() -> Iterator[list[int]]:
    """Peak memory of the process inside the block minus its memory before, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak (Linux)
    before, peak = _held("VmRSS"), [0]
    yield peak
    peak[0] = max(0, _held("VmHWM") - before)


def _held(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


# -- where the time goes -------------------------------------------------------------------------------------------


def _stages(lower: Callable[[], object], seconds: float, rounds: int = 10) -> dict[str, float]:
    """Divides `seconds` among the stages in proportion to samples of the stack over some rounds."""
    here, counts, done = threading.get_ident(), Counter[str](), threading.Event()

    def look() -> None:
        while not done.is_set():
            frame = sys._current_frames().get(here)
            stage = stage_of(frame) if frame is not None else None
            if stage:
                counts[stage] += 1
            sleep(INTERVAL)

    before = sys.getswitchinterval()
    sys.setswitchinterval(INTERVAL / 2)
    sampler = threading.Thread(target=look)
    sampler.start()
    try:
        for _ in range(rounds):
            lower()
    finally:
        done.set()
        sampler.join()
        sys.setswitchinterval(before)
    return {stage: seconds * counts[stage] / counts.total() for stage in STAGES if counts[stage]}


def stage_of(frame: FrameType | None) -> str | None:
    """The stage of a stack; None outside fxhlo's lowering."""
    innermost = frame
    inside = []
    while frame is not None:
        inside.append((frame.f_code.co_filename, frame.f_code.co_name))
        frame = frame.f_back
    names = {(Path(file).name, name) for file, name in inside if "/lowering/" in file or "/passes/" in file}
    for stage, place in (
        ("take the program", ("capture.py", "from_exported")),
        ("passes", ("pipeline.py", "run")),
        ("contract", ("coverage.py", "check")),
        ("reference tracing", ("trace.py", "trace_reference")),
        ("bytecode", ("mlir.py", "portable")),
    ):
        if place in names:
            return stage
    if ("emit.py", "emit") not in names or innermost is None:
        return None
    file, name = inside[0]
    if name == "module" and file.endswith("emit.py"):  # the only slow step there
        return "verify"
    if "/jaxlib/mlir/" in file or file.endswith(("lowering/build.py", "lowering/types.py")):
        return "building ops (MLIR)"
    return "rules" if any("/lowering/ops/" in place for place, _ in inside) else "walk and checks"


def main() -> None:
    """`WAY WIDTH ROUNDS`."""
    way, width, rounds = sys.argv[1:]
    print(json.dumps(run(way, int(width), int(rounds))))


if __name__ == "__main__":
    main()
