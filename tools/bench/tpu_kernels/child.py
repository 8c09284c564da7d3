"""`python -m`: compiles rows in a process of its own, and prints each as JSON as soon as it is done."""

from __future__ import annotations

import json
import re
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
        return replace(row, refused=str(problem).splitlines()[0])
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
    given = json.loads(sys.stdin.read())
    known = {(layer.kernel, layer.model, layer.name): layer for layer in layers()}
    act = {"program": program, "kernel": kernel}[given["what"]]
    for fields in given["rows"]:
        row = Row(**fields)
        print(json.dumps(asdict(act(row, known[row.kernel, row.model, row.step], Path(given["folder"])))), flush=True)


if __name__ == "__main__":
    main()
