"""Experts on TPU: the Pallas product of `fxhlo.moe` beside XLA's ragged dot and beside `fxhlo.moe` in plain StableHLO. No TPU is needed,
nothing is timed.

Comes in: nothing but libtpu. Goes out: a row per model, number of rows, target and program, for one layer's experts.

Cycles are the compiler's, for rows that choose as many experts as they can, evenly. Of a Pallas product: the bundles of its final
schedule for one visit times the visits, or the cycles in which the memory delivers the chosen weights, rows and results,
whichever are more; what XLA compiles around it is added. Of XLA's programs: `estimated_cycles` of fusions and copies, loops times their
count. XLA's ragged dot is a custom call, which has no estimate: its copies alone are counted, which favours it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ...kernels.moe.cases import MODELS
from ...kernels.spec import Implementation, Operands, TensorSpec
from ...runtime.core.targets import Target
from .sampling_tpu import pallas_cycles, xla_cycles

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jax import Array
    from rich.table import Table

    from ...passes import mlir
    from ...runtime.core.pjrt import Compiled

TARGETS = ("tpu-v5e", "tpu-v6e", "tpu-7x")
NAMES = ("Qwen3 30B-A3B", "gpt-oss 120b", "DeepSeek V3, 64 of 256 experts", "Qwen3-Next 80B")
ROWS = (8, 2048)
WAYS = {"pallas": "Pallas", "ragged": "ragged_dot", "xla": "XLA, a loop"}
UNITS = 4
"""Matrix units of a TensorCore of these targets."""


@dataclass(frozen=True)
class Row:
    """cycles: of the whole layer. memory: cycles in which the memory delivers the chosen weights. temporaries: bytes. seconds: of
    compilation on this machine. refused: why there is no program."""

    model: str
    rows: int
    target: str
    way: str
    cycles: float = 0.0
    memory: float = 0.0
    temporaries: int = 0
    seconds: float = 0.0
    refused: str = ""


def measure(say: Callable[[str], None]) -> list[Row]:
    found = []
    for name in NAMES:
        for rows in ROWS:
            for target in TARGETS:
                say(f"experts-tpu: {name}, {rows} rows, {target}")
                found += [_in_a_process(Row(name, rows, target, way)) for way in WAYS]
    return found


def table(rows: list[Row]) -> Table:
    from rich.table import Table

    made = Table(
        "experts of", "rows", "target", "program", "cycles", "times ours", "weights' bound", "temporaries MB", "compiled in s",
        title="One layer's experts",
    )  # fmt: skip
    ours = {(row.model, row.rows, row.target): row.cycles for row in rows if row.way == "pallas"}
    for row in rows:
        numbers = (
            [row.refused[:60], "", "", "", ""]
            if row.refused
            else [
                f"{row.cycles:,.0f}", f"{row.cycles / ours[row.model, row.rows, row.target]:.1f}", f"{row.memory:,.0f}",
                f"{row.temporaries / 1e6:,.0f}", f"{row.seconds:.1f}",
            ]
        )  # fmt: skip
        made.add_row(row.model, f"{row.rows:,}", row.target, WAYS[row.way], *numbers)
    return made


def _in_a_process(row: Row) -> Row:
    """Compiles in a process of its own, since libtpu reads its flags once."""
    with tempfile.TemporaryDirectory() as folder:
        flags = os.environ.get("LIBTPU_INIT_ARGS", "")
        flags += f" --xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final"
        done = subprocess.run(
            [sys.executable, "-P", "-m", __spec__.name, json.dumps({"row": asdict(row), "folder": folder})],
            env=os.environ | {"LIBTPU_INIT_ARGS": flags}, stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        return Row(**json.loads(done.stdout.strip().splitlines()[-1]))


def _child(row: Row, folder: Path) -> Row:
    import numpy as np
    from ml_dtypes import bfloat16

    from ...kernels.grouped_matmul.xla import block_of
    from ...runtime.core.errors import FxhloError

    mixture, attributes = MODELS[row.model]
    target, choices = Target.parse(row.target), row.rows * mixture.top
    specs = mixture.specs(row.rows, np.dtype(bfloat16))
    chosen = min(choices, mixture.experts)
    weights = sum(specs[name].shape[1] * specs[name].shape[2] * 2 for name in ("w13", "w2")) * chosen
    row = replace(row, memory=weights / (target.bandwidth or 1) * clock(target))
    begun = perf_counter()
    try:
        compiled = compile_implementation(_implementation(row.way), specs, attributes, target)
    except FxhloError as problem:
        return replace(row, refused=str(problem).splitlines()[0])
    row = replace(row, seconds=perf_counter() - begun, temporaries=compiled.memory.temporaries)
    # The loop in StableHLO turns once for each block of an expert's rows.
    turns = chosen * -(-choices // chosen // block_of(choices, mixture.experts)) if row.way == "xla" else 1
    cycles = xla_cycles(compiled.text, asked=True, steps=turns)
    if row.way == "pallas":
        cycles += sum(_product_cycles(specs[name], choices, chosen, target, folder) for name in ("w13", "w2"))
    return replace(row, cycles=cycles)


def _implementation(way: str) -> Implementation:
    from ...kernels.moe import KERNEL

    found = [one for one in KERNEL.implementations if one.name == way]
    return found[0] if found else Implementation("tpu", way, _by_ragged_dot)


def _by_ragged_dot(**named: Any) -> Array:
    import jax.numpy as jnp
    from jax import lax

    from ...kernels.moe.xla import experts

    dimensions = lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((1,), (2,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[0]
    )

    def product(values: Array, weights: Array, sizes: Array) -> Array:
        return lax.ragged_dot_general(values, weights, sizes, dimensions, preferred_element_type=jnp.float32)

    return experts(lambda sizes: partial(product, sizes=sizes), **named)


def compile_implementation(
    implementation: Implementation, specs: Mapping[str, TensorSpec], attributes: Mapping[str, Any], target: Target,
    aliases: Mapping[int, str] = MappingProxyType({}),
) -> Compiled:  # fmt: skip
    """An implementation compiled alone for operands of these shapes, those that it addresses itself pinned to rows. aliases: results
    that are an operand updated in place. Raises FxhloError."""
    from ...passes import mlir
    from ...passes.hlo.implementation import lower_implementation
    from ...passes.hlo.layouts import pin_row_major
    from ...runtime.core.pjrt import compile_ahead

    text = lower_implementation(implementation, Operands.of(specs, specs.values()), attributes, target)
    module = mlir.parse(text, mlir.context())
    with module.context, mlir.ir.Location.unknown():
        donate(module, list(specs), aliases)
        kinds = [specs[name] for name in implementation.row_major]
        types = {f"tensor<{'x'.join(map(str, kind.shape))}x{MLIR[kind.dtype.name]}>" for kind in kinds}
        pin_row_major(module, types)
        return compile_ahead(str(module), target)


MLIR = {"bfloat16": "bf16", "float32": "f32"}


def donate(module: mlir.ir.Module, operands: Sequence[str], aliases: Mapping[int, str]) -> None:
    """Gives the memory of operands to the results that they are updated to: {result: operand}."""
    from ...passes.mlir import ir

    function = ir.SymbolTable(module.operation)["main"].operation
    given = {operand: result for result, operand in aliases.items()}
    of_operands: list[dict[str, ir.Attribute]] = [
        {"tf.aliasing_output": ir.IntegerAttr.get(ir.IntegerType.get_signless(32), given[name])}
        if name in given
        else {}
        for name in operands
    ]
    function.attributes["arg_attrs"] = ir.ArrayAttr.get([ir.DictAttr.get(each) for each in of_operands])


def _product_cycles(weights: TensorSpec, choices: int, chosen: int, target: Target, folder: Path) -> float:
    """Of one Pallas product, compiled alone: its schedule is the last one in `folder`."""
    import numpy as np

    from ...kernels.grouped_matmul import KERNEL
    from ...kernels.grouped_matmul.tuning import height_of, tiles_for

    groups, outputs, inputs = weights.shape
    tiles = tiles_for(choices, groups, inputs, outputs, target)
    assert not isinstance(tiles, str), tiles
    (pallas,) = (one for one in KERNEL.implementations if one.name == "pallas")
    specs = {
        "values": TensorSpec((choices, inputs), weights.dtype), "weights": weights,
        "sizes": TensorSpec((groups,), np.dtype(np.int32)),
    }  # fmt: skip
    before = set(folder.glob("*-name.*-03-final_bundles.txt"))
    compile_implementation(pallas, specs, {}, target)
    schedules = set(folder.glob("*-name.*-03-final_bundles.txt")) - before
    visit = max(pallas_cycles(path.read_text(), 1, 1) for path in schedules)  # Mosaic's call; others are empty
    columns = -(-outputs // tiles.columns)
    visits = -(-choices // height_of(choices, target)) + chosen - 1
    moved = chosen * outputs * inputs * 2 + choices * (columns * inputs * 2 + outputs * 4)
    return max(visit * visits * columns, moved / (target.bandwidth or 1) * clock(target))


def clock(target: Target) -> float:
    """The target's clock in Hz: a matrix unit of n by n takes n times n products, of two operations, a cycle."""
    return (target.flops("bfloat16") or 1) / (2 * UNITS * target.mxu**2)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(asdict(_child(Row(**given["row"]), Path(given["folder"])))))
