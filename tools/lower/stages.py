"""The stages of `lower-model` after capture, one function each: passes, StableHLO, legalization, compilation, report.

Comes in: a Program or what the stage before made. Goes out: a `Made` per bucket; its facts are added to the run's `Report`. Each stage
shows its time on stderr.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from ...runtime.core.errors import OutOfMemoryError
from ...runtime.core.targets import Target
from .. import console
from ..console import UsageError
from .request import Request

if TYPE_CHECKING:
    from ...lowering.module import HloModule
    from ...passes.base import Pass
    from ...passes.hlo.legalize import Decision, Legalized
    from ...passes.hlo.plan import Plan
    from ...passes.pipeline import Observer
    from ...passes.program import Program
    from ...runtime.core.pjrt import Compiled
    from ..report.meshes import MeshReport
    from ..report.report import StepReport

Json = dict[str, object]


@dataclass
class Made:
    """The stages' results for one bucket. facts: its facts in the report."""

    module: HloModule
    facts: Json
    legalized: Legalized | None = None
    compiled: Compiled | None = None
    too_large: OutOfMemoryError | None = None
    report: StepReport | MeshReport | None = None

    @property
    def label(self) -> str:
        """tokens=64,requests=8; "main" where no size is symbolic."""
        return label(self.module.bindings)


@dataclass
class Report:
    """Facts about one run, for --json, --explain and --timing. sizes_from: the source of the buckets' sizes."""

    model: str
    target: str
    sizes_from: str = ""
    stages: dict[str, float] = field(default_factory=dict)
    passes: list[Json] = field(default_factory=list)
    notes: list[Json] = field(default_factory=list)
    modules: list[Json] = field(default_factory=list)
    written: list[str] = field(default_factory=list)


def run_passes(program: Program, passes: Sequence[Pass], request: Request, report: Report) -> Program:
    """Runs the passes with the requested observers, and checks the contract at the end."""
    from ...lowering.emit.coverage import check
    from ...passes.pipeline import Printer, Timer, run, verify

    timer = Timer()
    observers: list[Observer] = [verify, timer]
    if request.print_after:
        last = request.stop_after == "passes" and not request.as_json and request.output is None
        observers.append(Printer(request.print_after, console.stdout() if last else console.stderr.file))
    with console.stage("passes", report.stages) as came_out:
        program = run(passes, program, observers)
        came_out(f"{len(program.graph.nodes)} nodes")
    keys = ("name", "seconds", "nodes_before", "nodes_after")
    report.passes = [dict(zip(keys, row, strict=True)) for row in timer.rows]
    report.notes = [asdict(note) for note in program.notes]
    check(program)
    return program


def emit_one(program: Program, sizes: Mapping[str, int], request: Request, report: Report) -> Made:
    """Emits the module of one bucket. Raises UsageError for sizes that the model was not captured for."""
    from ...lowering.emit.emit import emit
    from ...lowering.errors import GuardError
    from ...lowering.rolling import rolled

    with console.stage("hlo", report.stages) as came_out:
        try:
            module = replace(emit(program, sizes, flat=request.flat), target=str(request.target))
            loop = rolled(module) if request.loop else None
            module = module if loop is None else loop.module
        except GuardError as problem:
            raise UsageError(
                f"--bucket {label(sizes)}: {problem.message}", where=problem.where, next_step=_ranges(program)
            ) from problem
        without = "" if loop is None or loop.stacked else ", without a loop: no layers that follow each other are alike"
        came_out(label(module.bindings) + without)
    facts = {"bindings": dict(module.bindings), "signature": module.signature.to_json()}
    report.modules.append({**facts, "portable_bytes": len(module.bytecode)})
    return Made(module, report.modules[-1])


def _ranges(program: Program) -> str:
    """The ranges of `--bucket`, and the options that raise their limits."""
    ranges = [f"{dim.name} {dim.minimum} to {dim.maximum or 'any size'}" for dim in program.dims]
    step = any(dim.name == "tokens" for dim in program.dims)
    wider = (
        "--max-model-len raises the limit of tokens"
        if step
        else "export the model with wider dynamic_shapes for others"
    )
    return f"--bucket takes {', '.join(ranges)}; {wider}"


def legalize_one(one: Made, report: Report) -> None:
    """Legalizes the module for its target and records the decisions on its composites."""
    from ...passes import mlir
    from ...passes.hlo.legalize import legalize

    with console.stage("legalize", report.stages):
        one.legalized = legalize(mlir.bytecode(one.module.module), one.module.target)
    one.facts["custom_calls"] = list(one.legalized.custom_calls)
    one.facts["decisions"] = [decision_facts(decision) for decision in one.legalized.decisions]


def partition_one(one: Made, plan: Plan, report: Report) -> None:
    """Partitions the module for the plan's mesh and its target; decisions are those of one device's kernels."""
    from ...passes import mlir
    from ...passes.hlo.legalize import legalize
    from ...passes.hlo.partition import partition

    with console.stage("partition", report.stages) as came_out:
        made = partition(mlir.bytecode(one.module.module), one.module.signature, plan, one.module.target)
        one.module = replace(one.module, module=made.module, signature=made.signature)
        legalized = legalize(mlir.bytecode(made.module), one.module.target)
        one.legalized = replace(legalized, decisions=made.decisions)
        came_out(str(plan.mesh))
    one.facts["signature"] = made.signature.to_json()
    one.facts["custom_calls"] = list(one.legalized.custom_calls)
    one.facts["decisions"] = [decision_facts(decision) for decision in made.decisions]


def compile_on_mesh(one: Made, target: Target, report: Report) -> None:
    """Compiles a partitioned module, without weights, and reports on one device's memory and on the collectives."""
    from ...runtime.core import pjrt
    from ..report.meshes import mesh_report

    assert one.legalized is not None
    signature, legalized = one.module.signature, one.legalized
    with console.stage("compile", report.stages) as came_out:
        one.compiled = pjrt.build(legalized.bytecode, target, custom_calls=legalized.custom_calls, mesh=signature.mesh)
        came_out(one.label)
    one.report = mesh_report(one.label, signature, target, one.compiled)
    one.facts["memory"] = asdict(one.compiled.memory)
    one.facts["report"] = one.report.to_json()


def compile_one(one: Made, target: Target, report: Report, *, needed: bool = False) -> None:
    """Compiles the module, without weights, and makes a report where the target's rates are known.

    A program that does not fit is reported as well, unless the executable is `needed`.
    """
    from ...runtime.core import pjrt
    from ..report.report import memory, step_report

    assert one.legalized is not None
    with console.stage("compile", report.stages) as came_out:
        fits = target.memory is None or memory(one.module, target, None).fits
        try:
            if fits or needed:
                one.compiled = pjrt.build(one.legalized.bytecode, target, custom_calls=one.legalized.custom_calls)
            came_out(one.label if fits else f"{one.label}: its arguments alone do not fit")
        except OutOfMemoryError as problem:
            if needed or problem.memory != "HBM":
                raise
            came_out(f"{one.label}: it does not fit")
            one.too_large = problem
    if one.compiled is not None:
        one.facts["memory"] = asdict(one.compiled.memory)
    if target.bandwidth is not None:
        with console.stage("report", report.stages):
            one.report = step_report(one.label, one.module, one.legalized, target, one.compiled, one.too_large)
        one.facts["report"] = one.report.to_json()


def decision_facts(decision: Decision) -> Json:
    """A decision of legalization as JSON values."""
    return {
        "kernel": decision.kernel,
        "became": decision.implementation or "its reference",
        "count": decision.count,
        "reasons": list(decision.reasons),
        "operands": decision.operands,
    }


def label(sizes: Mapping[str, int]) -> str:
    """tokens=64,requests=8; "main" without sizes."""
    return ",".join(f"{name}={size}" for name, size in sizes.items()) or "main"
