"""The options of `lower-model`, checked before anything slow begins.

Comes in: the command line's words. Goes out: a `Request`, or a UsageError (exit 2) that names the option.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...runtime.core.errors import FxhloError, TopologyError, UnsupportedError
from ...runtime.core.manifest import holds_bundle
from ...runtime.core.names import suggestion
from ...runtime.core.targets import Target
from ..console import UsageError

STAGES = ("capture", "passes", "hlo", "compile")
TEXTS = ("portable", "legalized", "optimized")
LARGEST = 2**31 - 1
"""Largest size of a dimension: positions and block tables are int32."""

CPU = Target("cpu")


@dataclass(frozen=True)
class Request:
    """The options of one run.

    buckets: sizes by dimension name; none: the engine's own (sizes.py). texts: which texts of the module are wanted, of TEXTS.
    devices: over which the model is split (tensor parallelism); experts_apart: whole experts on each.
    flat: every layer is written out. loop: repeated layers are a loop.
    pass_options: words as `--pass-option` takes them. max_model_len, block_size: in tokens; None: the engine's own.
    """

    model: str
    output: Path | None = None
    stop_after: str = "hlo"
    buckets: tuple[Mapping[str, int], ...] = ()
    target: Target = CPU
    dtype: str = "auto"
    max_model_len: int | None = None
    block_size: int | None = None
    print_after: frozenset[str] = frozenset()
    pass_options: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    explain: bool = False
    timing: bool = False
    as_json: bool = False
    html: Path | None = None
    flat: bool = False
    loop: bool = False
    devices: int = 1
    experts_apart: bool = False

    @property
    def compiles(self) -> bool:
        """Whether the target's compiler runs. A TPU's executable belongs into its bundle; a page reports what was compiled."""
        tpu_bundle = self.target.family == "tpu" and self.stop_after == "hlo" and is_folder(self.output)
        return self.stop_after == "compile" or self.html is not None or "optimized" in self.texts or tpu_bundle

    @property
    def legalizes(self) -> bool:
        """Whether composites are replaced for the target."""
        return self.compiles or self.explain or "legalized" in self.texts or is_folder(self.output)

    @property
    def emits(self) -> bool:
        """Whether a module is emitted."""
        return self.stop_after in ("hlo", "compile")


def parse_bucket(word: str) -> dict[str, int]:
    """{"tokens": 64, "requests": 8} from "tokens=64,requests=8"."""
    sizes: dict[str, int] = {}
    for part in word.split(","):
        name, equals, number = (each.strip() for each in part.partition("="))
        if not name or not equals or not number.isdecimal() or int(number) < 1 or name in sizes:
            raise UsageError(
                f"--bucket {word}: {part.strip() or 'an empty part'} is not NAME=NUMBER",
                next_step="write sizes of at least 1, each name once, as --bucket tokens=64,requests=8",
            )
        if int(number) > LARGEST:
            raise UsageError(f"--bucket {word}: {name} is more than {LARGEST}", next_step="give a smaller size")
        sizes[name] = int(number)
    return sizes


def parse_target(word: str) -> Target:
    """The target that `--target` names."""
    try:
        return Target.parse(word)
    except UnsupportedError as problem:
        raise UsageError(f"--target {word}: {problem.message}", next_step=problem.next_step) from None


def check_topology(target: Target) -> None:
    """Raises UsageError for a topology that the target's compiler does not know, UnsupportedError where the compiler for a card is not installed;
    loads libtpu for a topology, which a compile does anyway."""
    from ...runtime.core import topology

    topology.check_compiler(target)
    if target.topology_name is None:
        return
    try:
        topology.devices(target)
    except TopologyError as problem:
        raise UsageError(f"--target {target}: {problem.message}", next_step=problem.next_step) from None


def check_devices(target: Target, devices: int, stages: int = 1) -> None:
    """Raises UsageError where the target's compiler takes no program for so many devices of a topology, or for those of a later stage."""
    from ...runtime.core import pjrt
    from ...runtime.core.mesh import Mesh

    for stage in range(stages):
        try:
            pjrt.check_mesh(target, Mesh((("model", devices),), stage * devices))
        except UnsupportedError as problem:
            raise UsageError(f"--target {target}: {problem.message}", next_step=problem.next_step) from None


def check_cache() -> None:
    """Raises UsageError where the environment gives what was compiled no folder, or no limit: whatever compiles keeps some of it."""
    from ...runtime.core.cache import Cache

    try:
        Cache()
    except FxhloError as problem:
        raise UsageError(problem.message, next_step=problem.next_step) from None


def check(request: Request) -> None:
    """Raises UsageError for options that contradict each other, FxhloError for paths that cannot be written."""
    asked = "--html" if request.html else f"--{request.texts[0]}" if request.texts else None
    if asked and not request.emits:
        raise UsageError(
            f"{asked} shows a module, and --stop-after {request.stop_after} ends before there is one",
            next_step="leave out --stop-after",
        )
    if request.loop and (request.flat or request.devices > 1):
        raise UsageError(
            f"--loop rolls the calls of a layer into a loop, and {'--flat writes them out' if request.flat else 'a mesh is not split so'}",
            next_step="leave out one of them",
        )
    if request.devices > 1 and request.html is not None:
        raise UsageError(
            "--html reports on one device", next_step="leave it out: --stop-after compile prints what a mesh takes"
        )
    if request.html is not None:
        check_place(request.html, "--html")
        if request.html.is_dir():
            raise UsageError(
                "the page is a file, and this is a folder",
                where=request.html,
                next_step=f"--html {request.html}/report.html",
            )
    if request.compiles:
        check_cache()
        check_topology(request.target)
        check_devices(request.target, request.devices)
    if request.output is not None:
        check_place(request.output, "-o")
        _check_output(request, request.output)


def _check_output(request: Request, output: Path) -> None:
    if len(request.buckets) > 1 and output.suffix == ".mlirbc":
        raise UsageError(
            f"{len(request.buckets)} buckets do not fit in one .mlirbc",
            where=output,
            next_step="-o FOLDER makes a bundle of them",
        )
    if not request.emits and output.is_dir():
        raise UsageError(
            "a graph is written to a file, and this is a folder", where=output, next_step=f"-o {output}/graph.txt"
        )
    if not request.emits or not is_folder(output):
        return
    if request.texts:
        raise UsageError(
            f"--{request.texts[0]} is a text, and -o names a folder", where=output, next_step=f"-o {output}.mlir"
        )
    check_bundle_place(output)


def check_bundle_place(output: Path) -> None:
    """Raises FxhloError where something else than a bundle is at `output`."""
    if output.is_file() or (output.is_dir() and any(output.iterdir()) and not holds_bundle(output)):
        raise FxhloError(
            f"the {'folder holds' if output.is_dir() else 'file is'} something else than a bundle, and it is not overwritten",
            where=output,
            next_step="name another folder, or empty this one",
        )


def check_place(path: Path, option: str) -> None:
    """Raises FxhloError unless a file or folder can be made or replaced at `path`."""
    folder = path.parent
    if not folder.is_dir():
        raise FxhloError(f"{option} {path}: the folder is not there", where=folder, next_step=f"mkdir -p {folder}")
    held = path if path.is_dir() else folder
    if not os.access(held, os.W_OK | os.X_OK) or (path.is_file() and not os.access(path, os.W_OK)):
        raise FxhloError(
            f"{option} {path}: this user may not write there",
            where=path if path.exists() else folder,
            next_step="name a place that this user may write",
        )


def check_dimensions(buckets: Iterable[Mapping[str, int]], known: Iterable[str], what: str) -> None:
    """Raises UsageError for a name in the buckets that is not one of `known`. what: whose dimensions they are, for the error."""
    known = tuple(known)
    for sizes in buckets:
        for name in sizes:
            if name not in known:
                raise UsageError(
                    f"--bucket {name}={sizes[name]}: {what} has no dimension {name!r}",
                    next_step=suggestion(name, known, "its dimensions are")
                    if known
                    else "every size of it is fixed: leave out --bucket, or export it with dynamic_shapes",
                )


def is_folder(output: Path | None) -> bool:
    """Whether -o names a folder: one that is there, or a name without a suffix."""
    return output is not None and (output.is_dir() or (not output.suffix and not output.exists()))
