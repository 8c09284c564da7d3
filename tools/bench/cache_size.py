"""The time of a decode step against the size of the KV cache: a step that copied its cache would grow with it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from rich.table import Table

ROWS = 8
BLOCK = 16
STEPS = 30


@dataclass(frozen=True)
class CacheSize:
    """One size of the cache; bytes as the compiled module gives them, milliseconds a step (median)."""

    megabytes: float
    aliased_megabytes: float
    temporary_megabytes: float
    step_ms: float


def measure(
    model: Path, dtype: str, say: Callable[[str], None], blocks: tuple[int, ...] = (64, 512, 4096)
) -> list[CacheSize]:
    """Compiles one bucket (8 rows) for each number of blocks and runs it with zeros for weights."""
    from ...lowering.emit.emit import emit
    from ...passes.pipeline import run
    from ...runtime.vllm.steps.capture import capture_model

    program, passes = capture_model(str(model), dtype=dtype, max_model_len=512, max_num_seqs=ROWS)
    program = run(passes, program)
    rows = []
    for count in blocks:
        executable = emit(program, {"tokens": ROWS, "requests": ROWS, "num_blocks": count}).compile()
        signature, device = executable.signature, executable.loaded.device
        executable = executable.bind({one.name: device.zeros(one.shape, one.dtype) for one in signature.weights})
        size = sum(state.nbytes for state in signature.states)
        states, times = executable.zeros(), []
        inputs = _inputs(signature)
        for _ in range(STEPS + 5):
            caches = iter(states)
            buffers = [
                next(caches) if one.kind == "state" else device.put(inputs[one.name]) for one in executable.arguments
            ]
            begun = perf_counter()
            results = executable.execute(buffers)
            np.asarray(results[0])
            times.append(perf_counter() - begun)
            states = [result for result, one in zip(results, signature.results, strict=True) if one.alias is not None]
        memory = executable.memory
        row = CacheSize(size / 1e6, memory.aliased / 1e6, memory.temporaries / 1e6, statistics.median(times[5:]) * 1e3)
        say(f"a cache of {row.megabytes:,.0f} MB: {row.step_ms:.1f} ms a step")
        rows.append(row)
    return rows


def table(rows: Sequence[CacheSize]) -> Table:
    """A row per size of the cache."""
    made = Table(
        "KV cache",
        "updated in place",
        "temporaries",
        f"a step of {ROWS} rows",
        title="A decode step against the cache's size",
    )
    for row in rows:
        sizes = (row.megabytes, row.aliased_megabytes, row.temporary_megabytes)
        made.add_row(*(f"{size:,.0f} MB" for size in sizes), f"{row.step_ms:.1f} ms")
    return made


def _inputs(signature: object) -> dict[str, np.ndarray]:
    """A decode step: each request has 16 tokens in a block of its own and computes one more."""
    neutral = {"allowed_mask": -1, "bias_ids": -1, "seen_ids": -1, "top_p": 1, "repetition_penalty": 1}
    inputs = {
        one.name: np.full(one.shape, neutral.get(one.name, 0), one.dtype)
        for one in signature.arguments  # type: ignore[attr-defined]
        if one.kind == "input"
    }
    rows = np.arange(ROWS, dtype=np.int32)
    inputs["block_tables"][:, 0] = rows
    inputs["slot_mapping"][:] = rows * BLOCK + BLOCK - 1
    inputs["positions"][:] = BLOCK - 1
    inputs["seq_lens"][:] = BLOCK
    inputs["query_start_loc"][:] = np.arange(ROWS + 1)
    inputs["logit_rows"][:] = rows
    return inputs
