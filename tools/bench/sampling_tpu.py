"""Sampling on TPU: cycles and bytes of our Pallas kernels, of XLA's programs for the plain implementations, and of a sampler
that sorts. No TPU is needed, nothing is timed.

Comes in: nothing but libtpu. Goes out: a row per kernel and generation.

Cycles are the compiler's. Of a Pallas kernel: the bundles (one a cycle) of its final schedule, loops times their count. Of XLA's
program: `estimated_cycles` of its fusions and copies, loops times their count; sorts, scatters and other operations
that have no estimate count nothing, so XLA's and the sort's figures are too low. Bisection has no known
count in either program: `STEPS` is assumed for each of its loops. In ours every stage is counted. Bytes are HBM traffic by
XLA's cost analysis, which counts loop bodies once and so favours XLA's program; a Pallas kernel's bytes are known.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from .tpu_kernels.compiler import STEPS, pallas_cycles, xla_cycles

if TYPE_CHECKING:
    from jax import Array
    from rich.table import Table

TARGETS = ("tpu-v5e", "tpu-v6e")
ROWS, SIZE = 64, 128256
BLOCK = 8  # rows of a block, as in the kernels


@dataclass(frozen=True)
class Program:
    """The compiler's figures for one program: cycles and bytes for all rows; seconds of compilation on this machine."""

    cycles: float
    bytes: float
    temporaries: int
    seconds: float


@dataclass(frozen=True)
class Row:
    kernel: str
    target: str
    ours: Program
    xla: Program
    sort: Program | None


def measure(say: Callable[[str], None]) -> list[Row]:
    rows = []
    for target in TARGETS:
        for kernel in ("sample", "logprobs", "process_logits"):
            say(f"sampling-tpu: {kernel} for {target}; XLA's takes a minute or more to compile")
            ways = ("pallas", "xla", "sort") if kernel == "sample" else ("pallas", "xla")
            found = [_in_a_process(kernel, way, target) for way in ways]
            rows.append(Row(kernel, target, found[0], found[1], found[2] if len(found) > 2 else None))
    return rows


def table(rows: list[Row]) -> Table:
    from rich.table import Table

    made = Table(
        "kernel", "target", "program", "cycles", "times ours", "MB moved", "temporaries MB", "compiled in s",
        title=f"Sampling, {ROWS} rows of {SIZE} tokens",
    )  # fmt: skip
    for row in rows:
        named = (("Pallas", row.ours), ("XLA", row.xla), ("sort", row.sort))
        for name, program in ((name, program) for name, program in named if program is not None):
            made.add_row(
                row.kernel, row.target, name, f"{program.cycles:,.0f}", f"{program.cycles / row.ours.cycles:.1f}",
                f"{program.bytes / 1e6:,.0f}", f"{program.temporaries / 1e6:,.0f}", f"{program.seconds:.1f}",
            )  # fmt: skip
    return made


def _in_a_process(kernel: str, way: str, target: str) -> Program:
    """Compiles in a process of its own, since libtpu reads its flags once."""
    with tempfile.TemporaryDirectory() as folder:
        flags = os.environ.get("LIBTPU_INIT_ARGS", "")
        if way == "pallas":
            flags += f" --xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final"
        request = json.dumps({"kernel": kernel, "way": way, "target": target, "folder": folder})
        done = subprocess.run(
            [sys.executable, "-P", "-m", __spec__.name, request],
            env=os.environ | {"LIBTPU_INIT_ARGS": flags}, stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        return Program(**json.loads(done.stdout.strip().splitlines()[-1]))


def _child(kernel: str, way: str, target: str, folder: str) -> Program:
    from ...kernels.catalog import kernels
    from ...kernels.spec import Implementation, Operands
    from ...passes.hlo.implementation import lower_implementation
    from ...runtime.core.pjrt import compile_ahead
    from ...runtime.core.targets import Target

    operands = Operands.of(*zip(*_operands(kernel).items(), strict=True))
    attributes = {"count": 20} if kernel == "logprobs" else {}
    made = kernels()[f"fxhlo.{kernel}"].implementations
    implementation = next((one for one in made if one.name == way), Implementation("any", "sort", _sort))
    where = Target.parse(target)
    text = lower_implementation(implementation, operands, attributes, where)
    begun = perf_counter()
    compiled = compile_ahead(text, where)
    seconds = perf_counter() - begun
    analysis = compiled.raw.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    cycles = xla_cycles(compiled.text, asked=kernel != "process_logits")
    if way == "pallas":
        steps = 0 if kernel == "process_logits" else STEPS  # of loops over entries: no row has any
        (schedule,) = Path(folder).glob("*-name.*-03-final_bundles.txt")  # Mosaic's call
        cycles += pallas_cycles(schedule.read_text(), steps, ROWS // BLOCK)
    return Program(cycles, float(analysis["bytes accessed"]), compiled.memory.temporaries, seconds)


def _operands(kernel: str) -> dict[str, Any]:
    import ml_dtypes

    from ...kernels.logprobs.cases import specs as logprobs
    from ...kernels.process_logits.cases import specs as process_logits
    from ...kernels.sample.cases import specs as sample

    if kernel == "sample":  # its logits are what process_logits gives, the others' what the model gives
        return dict(sample(ROWS, SIZE, np.dtype(np.float32)))
    of = {"logprobs": logprobs, "process_logits": process_logits}[kernel]
    return dict(of(ROWS, SIZE, np.dtype(ml_dtypes.bfloat16)))


def _sort(
    logits: Array, temperature: Array, top_k: Array, top_p: Array, min_p: Array, seeds: Array, steps: Array
) -> Array:
    """A sampler as usually written in JAX: sort, cumulative sum, two thresholds, Gumbel noise. Compiled for its cost alone."""
    import jax
    import jax.numpy as jnp

    size = logits.shape[1]
    y = logits / jnp.maximum(temperature, 1e-5)[:, None]
    descending = jnp.flip(jnp.sort(y, axis=1), axis=1)
    kth = jnp.clip(jnp.where(top_k > 0, top_k, size), 1, size)[:, None] - 1
    y = jnp.where(y < jnp.take_along_axis(descending, kth, axis=1), -jnp.inf, y)
    probabilities = jax.nn.softmax(descending, axis=1)
    before = jnp.cumsum(probabilities, axis=1) - probabilities
    last = jnp.maximum(jnp.sum(before < top_p[:, None], axis=1, keepdims=True), 1) - 1
    y = jnp.where(y < jnp.take_along_axis(descending, last, axis=1), -jnp.inf, y)
    y = jnp.where(probabilities[:, :1] * min_p[:, None] > jax.nn.softmax(y, axis=1), -jnp.inf, y)

    def noise(seed: Array, step: Array) -> Array:
        key = jax.random.fold_in(jax.random.wrap_key_data(seed.astype(jnp.uint32)), step)
        return jax.random.gumbel(key, (size,))

    return jnp.argmax(y + jax.vmap(noise)(seeds, steps), axis=1).astype(jnp.int32)


if __name__ == "__main__":
    print(json.dumps(asdict(_child(**json.loads(sys.argv[1])))))
