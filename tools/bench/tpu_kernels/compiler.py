"""Programs for TPUs as libtpu's compiler sees them, without a TPU: one implementation compiled alone, and cycles by what it writes.

Cycles of XLA's programs are `estimated_cycles` of fusions and copies, loops times their count; sorts, scatters and custom calls have no
estimate and count nothing. Cycles of a Pallas kernel are the bundles (one a cycle) of its final schedule, loops times their count, or
those of libtpu's static profile, which it has for some kernels on v5e and v6e.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ....kernels.spec import Implementation, Operands, TensorSpec
from ....runtime.core.targets import Target

if TYPE_CHECKING:
    from ....passes import mlir
    from ....runtime.core.pjrt import Compiled

STEPS = 10
"""Turns of a loop without a known count, such as bisection's."""
UNITS = 4
"""Matrix units of a TensorCore of v5e, v6e and 7x."""
MLIR = {"bfloat16": "bf16", "float32": "f32"}
GUARD = r"(?:\(!?%\w+\), )?"
"""What an instruction of a schedule may begin with: the predicate under which it runs."""
SCHEDULES = "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final"
PROFILES = SCHEDULES + " --xla_jf_dump_static_llo_profile_to={}"
"""libtpu's flags for what `schedules` and `profiled` read; {}: the folder. With PROFILES the process ends where the profiler does not know
an instruction."""


def clock(target: Target) -> float:
    """The target's clock in Hz: a matrix unit of n by n takes n times n products, of two operations, a cycle."""
    return (target.flops("bfloat16") or 1) / (2 * UNITS * target.mxu**2)


def compile_implementation(
    implementation: Implementation, specs: Mapping[str, TensorSpec], attributes: Mapping[str, Any], target: Target,
    aliases: Mapping[int, str] = MappingProxyType({}),
) -> Compiled:  # fmt: skip
    """An implementation compiled alone for operands of these shapes, those that it addresses itself pinned to rows. aliases: results
    that are an operand updated in place. Raises FxhloError."""
    from ....passes import mlir
    from ....passes.hlo.implementation import lower_implementation
    from ....passes.hlo.layouts import pin_row_major
    from ....runtime.core.pjrt import compile_ahead

    text = lower_implementation(implementation, Operands.of(specs, specs.values()), attributes, target)
    module = mlir.parse(text, mlir.context())
    with module.context, mlir.ir.Location.unknown():
        donate(module, list(specs), aliases)
        kinds = [specs[name] for name in implementation.row_major]
        types = {f"tensor<{'x'.join(map(str, kind.shape))}x{MLIR[kind.dtype.name]}>" for kind in kinds}
        pin_row_major(module, types)
        return compile_ahead(str(module), target)


def donate(module: mlir.ir.Module, operands: Sequence[str], aliases: Mapping[int, str]) -> None:
    """Gives the memory of operands to the results that they are updated to: {result: operand}."""
    from ....passes.mlir import ir

    function = ir.SymbolTable(module.operation)["main"].operation
    given = {operand: result for result, operand in aliases.items()}
    of_operands: list[dict[str, ir.Attribute]] = [
        {"tf.aliasing_output": ir.IntegerAttr.get(ir.IntegerType.get_signless(32), given[name])}
        if name in given
        else {}
        for name in operands
    ]
    function.attributes["arg_attrs"] = ir.ArrayAttr.get([ir.DictAttr.get(each) for each in of_operands])


def pallas_cycles(schedule: str, steps: int, blocks: int) -> float:
    """Counts bundles of a final schedule, loops times their count: the constant of a loop's exit test, `blocks` for the grid's, `steps`
    where there is none.

    A line is an address, LB where a loop's body starts, and a `>` for each loop around it; code that the scheduler
    moved in from outside has fewer. So a loop extends to its last line with all of its marks. An exit test may stand in a loop within its
    own; it compares the next value of a counter, which is one of those that its loop's first line takes over from the turn before.
    """
    lines = re.findall(r"^\s*(?:0x[0-9a-f]+|0)\s*(LB)?[^:{\n]*:\s*([> ]*)\{(.*)$", schedule, re.MULTILINE)
    depths = [arrows.count(">") for _, arrows, _ in lines]
    starts = [at for at, (label, _, _) in enumerate(lines) if label]
    loops: list[tuple[int, int]] = []
    for start in starts:
        limit = next((at for at in starts if at > start and depths[at] <= depths[start]), len(lines))
        loops.append((start, max(at for at in range(start, limit) if depths[at] >= depths[start])))
    counts = [float(blocks if "iteration index" in lines[start][2] else steps) for start, _ in loops]
    counters = {
        name: index for index, (start, _) in enumerate(loops) for name in re.findall(r"(%\w+) = sphi ", lines[start][2])
    }
    following = dict(re.findall(rf"(%\w+) = sadd\.s32 {GUARD}1, (%\w+)", schedule))
    for at, (_, _, text) in enumerate(lines):
        for counter, count in re.findall(rf"scmp\.ge\.s32\.totalorder {GUARD}(%\w+), (\d+) /\* loop exit test", text):
            around = [index for index, (start, end) in enumerate(loops) if start <= at <= end]
            loop = counters.get(following.get(counter, ""), around[-1] if around else None)
            if loop is not None and "iteration index" not in lines[loops[loop][0]][2]:
                counts[loop] = float(count)
    total = float(len(lines))
    for index, (start, end) in enumerate(loops):
        outer = [counts[other] for other, (first, last) in enumerate(loops[:index]) if first <= start and end <= last]
        total += (end - start + 1) * (counts[index] - 1) * math.prod(outer)
    return total


def xla_cycles(text: str, *, asked: bool, steps: int | Sequence[int] = STEPS) -> float:
    """Sums `estimated_cycles` of an optimized module, loops times their count, `steps` where it is not known: the same for all, or from
    the outermost of nested loops on. Of a condition the most expensive branch, or the cheapest unless `asked`."""
    counts = [steps] if isinstance(steps, int) else list(steps)
    computations: dict[str, list[str]] = {}
    current: list[str] = []
    entry = ""
    for line in text.splitlines():
        if started := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            current = computations[started[2]] = []
            entry = started[2] if started[1] else entry
        else:
            current.append(line)

    @cache
    def cost(name: str, depth: int = 0) -> float:
        return sum(of(line, depth) for line in computations.get(name, ()))

    def of(line: str, depth: int) -> float:
        if loop := re.search(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line):
            known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            turns = int(known[1]) if known else counts[min(depth, len(counts) - 1)]
            inside = depth if known else depth + 1
            return turns * (cost(loop[1], inside) + cost(loop[2], inside))
        if " conditional(" in line:
            names = re.search(r"branch_computations=\{([^}]*)\}", line)
            branches = (
                re.findall(r"[\w.\-]+", names[1])
                if names
                else re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", line)
            )
            return (max if asked else min)(cost(branch, depth) for branch in branches)
        estimate = re.search(r'"estimated_cycles":"(\d+)"', line)
        return float(estimate[1]) if estimate and int(estimate[1]) < 2**62 else 0.0

    return cost(entry)


def schedules(folder: Path) -> set[Path]:
    """The schedules of the Pallas kernels that were compiled into `folder`; others are empty."""
    return set(folder.glob("*-name.*-03-final_bundles.txt"))


def bundles(made: set[Path], *, steps: int = 1, blocks: int = 1) -> float:
    """Cycles of the largest of some schedules. Raises RuntimeError where libtpu wrote none."""
    found = max((pallas_cycles(path.read_text(), steps, blocks) for path in made), default=0.0)
    if not found:
        raise RuntimeError("libtpu wrote no schedule")
    return found


def profiled(folder: Path, before: set[Path]) -> float:
    """Cycles of the Pallas kernel that was compiled last, by libtpu's profile, which is written anew for each program; where that has
    none, as of 7x, by its schedule. before: the schedules that were there before."""
    for profile in folder.glob("name.*_static_llo_profile.textproto"):
        if cycles := re.search(r"estimated_cycles: ([1-9]\d*)", profile.read_text()):
            return float(cycles[1])
    return bundles(schedules(folder) - before)
