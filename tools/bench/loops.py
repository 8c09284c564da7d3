"""Repeated layers as a loop over stacked weights and caches beside layers written out, as the compilers see them: Llama's shapes on the CPU and on v6e.

A row per number of layers and form: CPU seconds of XLA's compile, on the CPU the time of a step, for the TPU the compiler's cycles and bytes,
loops times their rounds.
Weights are random; the caches hold one token of each request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np
from rich.table import Table

from .depth import program_of, with_recorded

LAYERS = (4, 16, 32, 80, 126)
MODELS = {
    "cpu": {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 8192},
    "tpu-v6e": {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 8192},
}  # fmt: skip
"""Target -> sizes of the layers: those of SmolLM2-135M, and of Llama 3.1 8B; with a small vocabulary, for the layers are what is measured."""
BUCKET = {"tokens": 16, "requests": 16, "num_blocks": 64}
ROUNDS = 15


@dataclass(frozen=True)
class Form:
    """seconds: of CPU time of the compile. milliseconds: of a step, median; temporaries and moved in bytes."""

    target: str
    layers: int
    form: str
    seconds: float
    temporaries: int
    milliseconds: float | None = None
    cycles: int | None = None
    moved: int | None = None

    @property
    def key(self) -> tuple[object, ...]:
        return self.target, self.layers, self.form


def measure(say: Callable[[str], None], piece: str = "") -> list[Form]:
    """piece: "cpu-4" is that target's and number's rows alone, and those of the record."""
    rows: list[Form] = []
    for target, sizes in MODELS.items():
        for layers in LAYERS:
            if piece in ("", f"{target}-{layers}"):
                rows += _forms(target, sizes, layers, say)
    return with_recorded("loop", Form, rows) if piece else rows


def _forms(target: str, sizes: dict[str, int], layers: int, say: Callable[[str], None]) -> list[Form]:
    from ...lowering.emit.emit import emit
    from ...lowering.rolling import rolled

    program = program_of(sizes, layers, {})
    module = replace(emit(program, BUCKET), target=target)
    loop = rolled(module)
    assert loop.stacked, "the layers are no chain"
    rows = []
    for form, one in (("layers", module), ("loop", loop.module)):
        rows.append(_compiled(target, layers, form, one))
        say(f"{target}, {layers} layers, {form}: compiled in {rows[-1].seconds:.1f} s of CPU time")
    return rows


def _compiled(target: str, layers: int, form: str, module: Any) -> Form:
    from ..report.hlo import Optimized

    begun = process_time()
    compiled = module.compile() if target == "cpu" else module.compile_ahead()
    seconds = process_time() - begun
    if target == "cpu":
        return Form(target, layers, form, seconds, compiled.memory.temporaries, milliseconds=_step(compiled))
    costs = Optimized.parse(compiled.text).costs
    cycles, moved = sum(cost.cycles for cost in costs), round(sum(cost.bytes for cost in costs))
    return Form(target, layers, form, seconds, compiled.memory.temporaries, cycles=cycles, moved=moved)


def _step(executable: Any) -> float:
    """Milliseconds of a step whose requests have a token each."""
    from ...runtime.core.dtypes import DTYPES

    generator, device = np.random.default_rng(0), executable.loaded.device
    states: dict[int, Any] = {}
    fixed: dict[int, Any] = {}
    for number, argument in enumerate(executable.signature.arguments):
        dtype = np.dtype(DTYPES[argument.dtype].numpy)
        if argument.kind == "state":
            states[number] = device.zeros(argument.shape, dtype)
        elif argument.kind == "input":
            fixed[number] = device.put(np.zeros(argument.shape, dtype))
        else:
            fixed[number] = device.put(
                generator.standard_normal(argument.shape, np.float32).astype(dtype) * dtype.type(0.02)
            )
    times = []
    for _ in range(ROUNDS):
        begun = perf_counter()
        count = len(executable.signature.arguments)
        results = executable.loaded.execute([states.get(one, fixed.get(one)) for one in range(count)])
        for result in results:
            result.block_until_ready()
        times.append(1e3 * (perf_counter() - begun))
        states = {number: results[executable.signature.arguments[number].alias] for number in states}
    return median(times)


def table(rows: Sequence[Any]) -> Table:
    """A line per row."""
    made = Table(
        "target", "layers", "form", "compile, s of CPU", "temporaries, MB", "step, ms", "cycles", "moved, MB",
        title="Repeated layers written out and as a loop over stacked weights and caches",
    )  # fmt: skip
    for row in rows:
        step = "" if row.milliseconds is None else f"{row.milliseconds:.2f}"
        cycles = "" if row.cycles is None else f"{row.cycles:,}"
        moved = "" if row.moved is None else f"{row.moved / 1e6:,.0f}"
        made.add_row(
            row.target,
            str(row.layers),
            row.form,
            f"{row.seconds:.1f}",
            f"{row.temporaries / 1e6:,.1f}",
            step,
            cycles,
            moved,
        )
    return made
