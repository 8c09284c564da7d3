"""Seconds of CPU time from config.json to StableHLO by the number of layers, and of an engine's further buckets.

Llama's shapes, bfloat16, without weights: capture, passes and emission of a step, and XLA's compile for the CPU of a narrow one, with layers as
functions and written out. One process, so that what is imported is not measured; CPU time, which is steadier on a shared machine.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from rich.table import Table

from .record import Record, records

if TYPE_CHECKING:
    from ...passes.program import Program

LAYERS = (4, 16, 32, 80, 126)
COMPILED = 16
"""Layers that XLA compiles at most: what is written out takes minutes beyond."""
NARROW = {
    "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1024,
}  # fmt: skip
LLAMA_405B = {
    "hidden_size": 16384, "intermediate_size": 53248, "num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip
COMMON = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "hidden_act": "silu", "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
BUCKETS = tuple(
    (tokens, min(tokens, 32)) for tokens in (8, 1, 2, 4, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048)
)
"""(tokens, requests) of the first bucket and 16 further ones."""


@dataclass(frozen=True)
class Depth:
    """Seconds of CPU time. emission, flat: with references, which are traced before.

    bucket: a bucket's emission and legalization for the CPU, as an engine has it; further: the same of 16 further buckets together; singly: of
    these, each emitted by itself."""

    model: str
    layers: int
    build: float
    capture: float
    passes: float
    emission: float
    flat: float
    bucket: float
    further: float
    singly: float
    compile: float | None = None
    compile_flat: float | None = None

    @property
    def key(self) -> tuple[object, ...]:
        return self.model != "narrow", self.layers


class _Row(Protocol):
    """A row that its key tells from others."""

    def __init__(self, **fields: Any) -> None: ...

    @property
    def key(self) -> tuple[Any, ...]: ...


Row = TypeVar("Row", bound=_Row)


def measure(say: Callable[[str], None], piece: str = "") -> list[Depth]:
    """A row for each number of layers of the narrow model, and one for Llama 405B's shapes. piece: "narrow-32" is that row alone, measured
    by itself, and those of the record."""
    rows: list[Depth] = []
    for name, sizes, counts in (("narrow", NARROW, LAYERS), ("405B", LLAMA_405B, (126,))):
        for count in counts:
            if piece not in ("", f"{name}-{count}"):
                continue
            if not rows:
                _measured("warm-up", 2, NARROW, compiles=True)
            rows.append(_measured(name, count, sizes, compiles=name == "narrow" and count <= COMPILED))
            say(f"{name}, {count} layers: {rows[-1].capture:.2f} s capture, {rows[-1].emission:.2f} s emission")
    return with_recorded("depth", Depth, rows) if piece else rows


def with_recorded(part: str, kind: type[Row], rows: list[Row]) -> list[Row]:
    """These rows of a part that is measured in pieces, and those of its last record on this class of machine, in order of their keys."""
    last = records().get(Record.now(part, (), ()).part)
    recorded = [kind(**row) for row in (last.rows if last else ())]
    found = {row.key: row for row in (*recorded, *rows)}
    return [found[key] for key in sorted(found)]


def _measured(name: str, layers: int, sizes: dict[str, int], *, compiles: bool) -> Depth:
    from ...lowering.emit.emit import emit

    took: dict[str, float] = {}
    program = program_of(sizes, layers, took)
    first, *others = ({"tokens": t, "requests": r, "num_blocks": 64} for t, r in BUCKETS)
    emit(program, first)  # traces the references, which both forms share
    with _timed(took, "emission"):
        functions = emit(program, first)
    with _timed(took, "flat"):
        flat = emit(program, first, flat=True)
    if compiles:
        for key, module in (("compile", functions), ("compile_flat", flat)):
            with _timed(took, key):
                module.compile()
    del functions, flat
    took |= further(program, first, others)
    return Depth(name, layers, **took)


def further(program: Program, first: dict[str, int], others: Sequence[dict[str, int]]) -> dict[str, float]:
    """Seconds of CPU time: `bucket`, the first one's entry for the CPU; `further`, those of the others; `singly`, these each by itself."""
    from ...lowering.buckets import Buckets
    from ...lowering.bundling import Entry
    from ...lowering.compiling import legalized
    from ...lowering.emit.emit import emit
    from ...runtime.core.targets import Target

    took: dict[str, float] = {}
    buckets = Buckets(program, Target("cpu"), {})
    with _timed(took, "bucket"):
        buckets.entry(first)
    with _timed(took, "further"):
        made = [buckets.entry(sizes).legal.bytecode for sizes in others]
    with _timed(took, "singly"):
        singly = [Entry.of(emit(program, sizes, references=False), legalized).legal.bytecode for sizes in others]
    assert made == singly, "a bucket's module is another one than that which is emitted by itself"
    return took


def program_of(sizes: dict[str, int], layers: int, took: dict[str, float]) -> Program:
    """The step of a Llama of these sizes after its passes. took: gets the seconds of CPU time by stage."""
    from ...passes.pipeline import run
    from ...runtime.core.targets import Target
    from ...runtime.vllm.compat import engine_config
    from ...runtime.vllm.model import build_model
    from ...runtime.vllm.steps.capture import capture_step, options_of
    from ...runtime.vllm.steps.passes import step_passes

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps({**COMMON, **sizes, "num_hidden_layers": layers}))
        with _timed(took, "build"):
            config = engine_config(folder, dtype="auto", max_model_len=4096, max_num_seqs=32)
            model = build_model(config, weights=False)
        with _timed(took, "capture"):
            captured = capture_step(config, model)
        with _timed(took, "passes"):
            return run(step_passes(options_of(config, model, Target("cpu"))), captured)


@contextmanager
def _timed(took: dict[str, float], what: str) -> Iterator[None]:
    begun = process_time()
    yield
    took[what] = took.get(what, 0.0) + process_time() - begun


def table(rows: Sequence[Any]) -> Table:
    """A line per model and number of layers."""
    made = Table(
        "Llama", "layers", "build", "capture", "passes", "emission", "written out", "a bucket", "16 further", "each by itself", "compile", "written out",
        title="From config.json to StableHLO, and XLA's compile for the CPU: seconds of CPU time",
    )  # fmt: skip
    for row in rows:
        times = (row.build, row.capture, row.passes, row.emission, row.flat, row.bucket, row.further, row.singly)
        compiled = ("" if one is None else f"{one:.2f}" for one in (row.compile, row.compile_flat))
        made.add_row(row.model, str(row.layers), *(f"{one:.2f}" for one in times), *compiled)
    return made
