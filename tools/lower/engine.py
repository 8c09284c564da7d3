"""`lower-model engine`: all programs of the engine that would serve a model, compiled for a target, and the bundle of them.

Comes in: a model's config.json and vLLM's own options. Goes out: a table of the programs, whether they fit with weights and caches, and
with -o a bundle from which `vllm serve` starts. Guaranteed: no weight is read, and a TPU need not be here.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from ...runtime.core.errors import FxhloError, OutOfMemoryError, UnsupportedError
from ...runtime.core.targets import Target
from .. import console
from ..console import UsageError
from ..models import Model, opened
from ..report.units import Unit
from .capture import check_architecture, load_libraries, taken_by_vllm
from .request import check_bundle_place, check_cache, check_devices, check_place, check_topology

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from ...lowering.bundling import Finished
    from ...runtime.vllm.ahead import Planned

Json = dict[str, object]


@dataclass(frozen=True)
class Program:
    """One program, in bytes. The arguments are the weights, the caches and a step's inputs; `needed` is known where it does not fit.
    Without `code` it does not fit."""

    name: str
    seconds: float
    arguments: int | None = None
    temporaries: int | None = None
    code: int | None = None
    needed: int | None = None

    @classmethod
    def of(cls, finished: Finished) -> Program:
        if finished.compiled is None:
            assert finished.too_large is not None
            return cls(finished.name, finished.seconds, needed=finished.too_large.needed)
        memory = finished.compiled.memory
        fresh = memory.outputs - memory.aliased
        return cls(finished.name, finished.seconds, memory.arguments, memory.temporaries + fresh, memory.code)


@dataclass(frozen=True)
class Sum:
    """What all programs together take of a device, in bytes: one runs at a time, and the code of all of them stays."""

    weights: int
    caches: int
    temporaries: int
    code: int
    needed: int
    memory: int
    fits: bool

    @classmethod
    def of(cls, plan: Planned, programs: Sequence[Program]) -> Sum:
        temporaries = max((one.temporaries or 0 for one in programs), default=0)
        code = sum(one.code or 0 for one in programs)
        arguments = max((one.arguments or 0 for one in programs), default=0)
        all_of_it = (arguments or plan.weights + plan.caches) + temporaries + code
        needed = max([all_of_it, *(one.needed or 0 for one in programs)])
        fits = needed <= plan.room.total and all(one.code is not None for one in programs)
        return cls(plan.weights, plan.caches, temporaries, code, needed, plan.room.total, fits)


def lower_engine(
    word: str, words: Sequence[str], target: Target, output: Path | None, *, as_json: bool = False
) -> None:
    """Compiles every program of the engine of MODEL. words: vLLM's options. output: folder of the bundle; None: nothing is kept.

    Ends with exit code 1 where they do not fit. Raises FxhloError.
    """
    if output is not None:
        check_place(output, "-o")
        check_bundle_place(output)
    check_cache()
    check_topology(target)
    with opened(word) as model, TemporaryDirectory(prefix="fxhlo-engine-") as temporary:
        times: dict[str, float] = {}
        plan = _planned(model, words, target, times)
        finished: list[Program] = []
        console.say(f"{plan.programs.count} programs, {plan.programs.sizes['num_blocks']} KV blocks, for {target}")
        with Say(plan.programs.count) as say:
            try:
                place = output or Path(temporary) / "bundle"
                plan.programs.make(place, say, lambda one: finished.append(Program.of(one)), carry=True)
            except OutOfMemoryError:
                output = None  # which the table tells with the rest
    found = Sum.of(plan, finished)
    _show(model, plan, finished, found, output, times, as_json=as_json)
    if output is not None:
        console.say(f"wrote {output.absolute()}: {serve_command(word, words, plan.programs.config, output)}")
    if not found.fits:
        raise SystemExit(1)


def _planned(model: Model, words: Sequence[str], target: Target, times: dict[str, float]) -> Planned:
    if model.kind != "folder":
        raise UsageError(
            f"{model.name} is a .pt2, and an engine serves vLLM's models", next_step="name a folder or a config.json"
        )
    with console.stage("libraries", times):
        load_libraries(model)
    with console.stage("config", times):
        check_architecture(model)
        config = _config(model, words)
    _check_settings(config, target)
    from ...runtime.vllm.ahead import planned

    with console.stage("model", times) as came_out:
        plan = planned(config, target)
        came_out(f"weights {_bytes(plan.weights)}, caches {_bytes(plan.caches)}")
    return plan


def _config(model: Model, words: Sequence[str]) -> VllmConfig:
    """vLLM's config of the model with these options. Raises UsageError where vLLM takes the model and not the options."""
    from ...runtime.vllm.compat import engine_config_of
    from ...runtime.vllm.settings import SettingsError

    if any(word.partition("=")[0] in ("--model", "--load-format") for word in words):
        raise UsageError(
            "--model and --load-format are this command's own",
            next_step="name the model first: lower-model engine MODEL",
        )
    try:
        with taken_by_vllm(model):
            return engine_config_of(str(model.path), words)
    except SettingsError as problem:
        raise UsageError(problem.message, next_step=problem.next_step) from None
    except UnsupportedError as problem:
        if problem.next_step and "vllm serve --help" in problem.next_step:
            raise UsageError(problem.message, next_step=problem.next_step) from None
        raise


def _check_settings(config: VllmConfig, target: Target) -> None:
    """Raises UsageError where fxhlo's own options among the words are for another target, or from a bundle, or name what cannot be planned with."""
    from ...runtime.vllm.parallel import all_devices_of, devices_of, stages_of
    from ...runtime.vllm.settings import Settings
    from ...runtime.vllm.steps.planning.engine import check_settings

    settings = Settings.of(config)
    if settings.bundle is not None:
        raise UsageError(
            "--additional-config names a bundle, and this command makes one", next_step='leave out its "bundle"'
        )
    if settings.target is not None and Target.parse(settings.target) != target:
        raise UsageError(
            f"--additional-config names the target {settings.target}, and --target {target}",
            next_step="name the same, or leave the former out",
        )
    try:
        check_settings(config, target)
    except FxhloError as problem:
        raise UsageError(problem.message, where=problem.where, next_step=problem.next_step) from None
    if target.topology_name is not None and (devices := all_devices_of(config)) > 1:
        from ...runtime.core import topology

        if devices > (there := len(topology.devices(target))):
            stages = f", {stages_of(config)} stages" if stages_of(config) > 1 else ""
            raise UsageError(
                f"the engine has {devices} devices{stages}: {target} has {there}",
                next_step=f"name a larger topology, as --target {target.name}:...",
            )
        check_devices(target, devices_of(config), stages_of(config))


def serve_command(word: str, words: Sequence[str], config: VllmConfig, output: Path) -> str:
    """The line that serves the bundle: with the options that it was made with, whose --additional-config takes the bundle in its plan's place."""
    from ...runtime.vllm.settings import KEY, Note

    option = "--additional-config"
    kept: list[str] = []
    remaining = iter(words)
    for each in remaining:
        name, equals, _ = each.replace("_", "-").partition("=")
        if name != option and not name.startswith(f"{option}."):
            kept.append(each)
        elif not equals:
            next(remaining, None)  # its value
    additional = config.additional_config if isinstance(config.additional_config, dict) else {}
    others = {name: value for name, value in additional.items() if not isinstance(value, Note)}
    own = {name: value for name, value in others.get(KEY, {}).items() if name not in ("plan", "lengths", "budget")}
    given = json.dumps({**others, KEY: {**own, "bundle": str(output.absolute())}})
    model = "MODEL" if word.endswith(".json") else word
    return " ".join(["vllm serve", *map(shlex.quote, (model, *kept)), option, shlex.quote(given)])


class Say:
    """Shows what `Programs.make` tells: stages as lines, programs as a bar on a terminal."""

    def __init__(self, count: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Bar(*columns, console=console.stderr, disable=not console.stderr.is_terminal)
        self._task = self._bar.add_task("programs", total=count)

    def __enter__(self) -> Say:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, problem, trace)

    def __call__(self, message: str, *, done: int | None = None, of: int | None = None) -> None:
        if done is None:
            console.say(message)
        elif console.stderr.is_terminal:
            self._bar.update(self._task, completed=done)
        else:
            console.say(f"{message} ({done} of {of})")


def _show(
    model: Model,
    plan: Planned,
    programs: Sequence[Program],
    found: Sum,
    output: Path | None,
    times: dict[str, float],
    *,
    as_json: bool,
) -> None:
    target, sizes = str(plan.programs.target), dict(plan.programs.sizes)
    written = None if output is None else str(output.absolute())
    if as_json:
        facts: Json = {
            "model": model.title,
            "target": target,
            "sizes": sizes,
            "programs": [asdict(one) for one in programs],
        }
        console.put(json.dumps({**facts, **asdict(found), "stages": times, "written": written}, indent=2))
    else:
        console.put(text(model.title, target, programs, found, plan.room.place))


def text(title: str, target: str, programs: Sequence[Program], found: Sum, place: str) -> str:
    """A row per program, and what all of them take together."""
    unit = Unit.of_bytes(size for one in programs for size in (one.temporaries, one.code))
    large = Unit.of_bytes((found.needed, found.memory))
    width = max([len(one.name) for one in programs], default=8)
    head = f"{'program':<{width}} {'compile, s':>11} {'arguments, ' + large.name:>16} {'temporaries, ' + unit.name:>18} {'code, ' + unit.name:>12}"
    rows = [
        f"{one.name:<{width}} {one.seconds:>11.2f} {large(one.arguments):>16} {unit(one.temporaries):>18} {unit(one.code):>12}"
        + ("" if one.needed is None else f"   does not fit: it needs {large.of(one.needed)}")
        for one in programs
    ]
    parts = f"weights {large.of(found.weights)}, caches {large.of(found.caches)}, temporaries {unit.of(found.temporaries)}, code {unit.of(found.code)}"
    fits = "They fit" if found.fits else "They do not fit"
    verdict = f"{fits}: {large.of(found.needed)} of the {large.of(found.memory)} of {place} ({parts})."
    return "\n".join([f"{title}: {len(programs)} programs for {target}", head, *rows, verdict])


def _bytes(size: int) -> str:
    return Unit.of_bytes((size,)).of(size)
