"""The whole of `lower-model MODEL`: check the request, capture, run the stages, write, show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.core.errors import FxhloError
from ...runtime.core.names import suggestion
from .. import console
from ..console import UsageError
from ..models import Model, opened
from .capture import Captured, Split, capture, example_step_passes, known_passes, load_libraries
from .output import write_modules, write_text
from .request import Request, check, check_dimensions, is_folder
from .show import list_passes, show, show_reports
from .sizes import DIMENSIONS, with_defaults
from .stages import Made, Report, compile_on_mesh, compile_one, emit_one, label, legalize_one, partition_one, run_passes

if TYPE_CHECKING:
    from ...passes.base import Pass
    from ...passes.options import Setting
    from ...passes.program import Program


def lower_model(request: Request) -> None:
    """Runs the stages and shows the requested results. Raises FxhloError."""
    check(request)
    with opened(request.model) as model:
        if model.kind == "folder":
            check_dimensions(request.buckets, DIMENSIONS, "a vLLM step")
        report = Report(model.title, str(request.target))
        with console.stage("libraries", report.stages):
            load_libraries(model)
        settings = check_passes(request, known_passes(model))
        split = Split(request.devices, request.experts_apart, request.target) if request.devices > 1 else None
        options = (request.dtype, request.max_model_len, request.block_size, request.buckets)
        captured = capture(model, *options, split=split, times=report.stages)
        if model.kind == "exported":
            check_dimensions(request.buckets, [dim.name for dim in captured.program.dims], model.name)
        _finish(captured, settings, request, report)


def _finish(captured: Captured, settings: Sequence[Setting], request: Request, report: Report) -> None:
    """Everything after capture."""
    from ...passes.options import configured

    program = captured.program
    if request.stop_after != "capture":
        program = run_passes(program, configured(captured.passes, settings), request, report)
    made: list[Made] = []
    if request.emits:
        say_devices(request)
        made = [emit_one(program, sizes, request, report) for sizes in buckets(program, captured, request, report)]
        if captured.plan is not None:
            from ...runtime.core.plugins import reserve_cpu_devices

            if request.compiles and request.target.family == "cpu":
                reserve_cpu_devices(request.devices)  # before kernels are lowered, which looks at jax's devices
            for one in made if request.legalizes else ():
                partition_one(one, captured.plan, report)
            for one in made if request.compiles else ():
                compile_on_mesh(one, request.target, report)
        else:
            for one in made if request.legalizes else ():
                legalize_one(one, report)
            for one in made if request.compiles else ():
                compile_one(one, request.target, report, needed=is_folder(request.output))
        write_modules(made, request, report)
        if request.compiles:
            show_reports(made, request, report)
    else:
        _write_graph(program, request, report)
    show(made, request, report)


def _write_graph(program: Program, request: Request, report: Report) -> None:
    from ...passes.pipeline import readable

    if request.output is not None:
        write_text(request.output, readable(program), report)
    elif not request.as_json:
        console.put(readable(program))


def buckets(program: Program, captured: Captured, request: Request, report: Report) -> list[Mapping[str, int]]:
    """The sizes of each program to emit. Sizes that were not given are the engine's, and are reported as such."""
    defaults = captured.sizes(program)
    wanted = [with_defaults(given, defaults) for given in request.buckets or ({},)]
    missing = [name for name in defaults if any(name not in given for given in request.buckets or ({},))]
    if missing:
        report.sizes_from = f"{', '.join(missing)} as in the largest step of vLLM's engine"
        console.say(f"sizes: {label(wanted[0])} ({report.sizes_from}; --bucket takes others)")
    elif program.dims and not request.buckets:
        report.sizes_from = "those of the example inputs"
        sizes = label({dim.name: dim.hint for dim in program.dims if dim.hint is not None})
        console.say(f"sizes: {sizes} ({report.sizes_from}; --bucket takes others)")
    return list(wanted)


def say_devices(request: Request) -> None:
    """Tells the user that of a topology of several chips one device is used."""
    chips = prod(int(size) for size in (request.target.topology or "1").split("x"))
    if chips > 1 and request.devices == 1:
        console.say(
            f"one device is used: {request.target} has {chips} chips, the module is not partitioned, and all figures are "
            "of one device; --tensor-parallel takes more"
        )


def check_passes(request: Request, passes: Sequence[Pass]) -> list[Setting]:
    """The settings of `--pass-option`; UsageError where a pass or an option does not exist."""
    from ...passes.options import OptionError, parse_setting

    known = [*dict.fromkeys(step.name for step in passes), "all"]
    for name in sorted(request.print_after - set(known)):
        raise UsageError(
            f"--print-after {name}: there is no pass {name!r}", next_step=suggestion(name, known, "the passes are")
        )
    try:
        return [parse_setting(word, passes) for word in request.pass_options]
    except OptionError as problem:
        next_step = f"{problem.next_step}; lower-model --list-passes shows all of them"
        raise UsageError(f"--pass-option: {problem.message}", next_step=next_step) from None


def show_passes(*, as_json: bool) -> None:
    """`--list-passes`: the passes of any model, and where vLLM is installed those of its step."""
    from ...passes.default import default_passes

    of: list[tuple[str, Sequence[Pass]]] = [("any model (.pt2)", default_passes())]
    step = Model("", "folder", Path(), {})
    try:
        load_libraries(step)
        of.append(("vLLM's step (the engine's defaults depend on the model)", example_step_passes()))
    except FxhloError as problem:
        console.say(f"without the passes of vLLM's step: {problem.message}")
    list_passes(of, as_json=as_json)
