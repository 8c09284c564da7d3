"""`python -m fxhlo.tools.bench.tpu_kernels.child program|kernel FOLDER`: compiles in a process of its own.

Comes in: rows as JSON, one a line, on standard input. Goes out: each with its figures, one a line. libtpu writes into FOLDER.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter

from ....kernels.catalog import kernels
from ....kernels.spec import Case, Kernel, Operands
from ....runtime.core.errors import FxhloError
from ....runtime.core.targets import Target
from ...kernel_matrix import compiled
from . import forms, ours
from .compiler import clock, compile_implementation, xla_cycles
from .layers import Layer, layers
from .rows import Row

MEMORY = 12 * 2**30
"""Bytes that the process may take, so that a compiler out of bounds ends itself and no other process."""


def has_kernel(row: Row) -> bool:
    """Whether the row's form has a Pallas kernel, whose cycles are added to those of the program around it."""
    return row.form in ("pallas", "absorbed", "decompressed", "wheel")


def program(row: Row, layer: Layer, folder: Path) -> Row:
    """The row with the figures of the program, its cycles without those of Pallas kernels."""
    kernel, target = kernels()[f"fxhlo.{row.kernel}"], Target.parse(row.target)
    operands = Operands.of(layer.operands, layer.operands.values())
    row = replace(row, least=_least(kernel, layer, target), taken=forms.taken(kernel, layer, row.form, target))
    implementation = None if row.form == "reference" else forms.implementation(kernel, layer, row.form)
    if implementation and (refusal := implementation.refusal(operands, layer.attributes, target)):
        return replace(row, refused=refusal)
    begun = perf_counter()
    try:
        if implementation is None:
            done = compiled(kernel, Case(layer.name, layer.operands, layer.attributes), target)
        else:
            done = compile_implementation(implementation, layer.operands, layer.attributes, target, _aliases(kernel))
    except FxhloError as problem:
        return replace(row, seconds=perf_counter() - begun, failed=str(problem).splitlines()[0])
    return replace(
        row, seconds=perf_counter() - begun, temporaries=done.memory.temporaries, bytes=done.costs["bytes accessed"],
        cycles=xla_cycles(done.text, asked=True, steps=forms.turns(layer, row.form)),
    )  # fmt: skip


def kernel(row: Row, layer: Layer, folder: Path) -> Row:
    """The row with the cycles of its Pallas kernels alone."""
    return replace(row, cycles=ours.cycles(layer, row.form, Target.parse(row.target), folder))


def _least(kernel: Kernel, layer: Layer, target: Target) -> float:
    if kernel.work is None:
        return 0.0
    flops, moved = kernel.work(Operands.of(layer.operands, layer.operands.values()), layer.attributes)
    seconds = max(flops / (target.flops("bfloat16") or 1), moved / (target.bandwidth or 1))
    return seconds * clock(target)


def _aliases(kernel: Kernel) -> dict[int, str]:
    """Results that are updated operands, by the operands' names."""
    names = re.findall(r"Tensor\?? (\w+)", kernel.schema.split("*")[0])
    return {result: names[operand] for result, operand in kernel.aliases.items()}


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # compilers print too
    act, folder = {"program": program, "kernel": kernel}[sys.argv[1]], Path(sys.argv[2])
    known = {(layer.kernel, layer.model, layer.name): layer for layer in layers()}
    for line in sys.stdin:
        row = Row(**json.loads(line))
        print(json.dumps(asdict(act(row, known[row.kernel, row.model, row.step], folder))), file=out, flush=True)


if __name__ == "__main__":
    main()
