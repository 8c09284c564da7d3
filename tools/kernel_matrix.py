"""The matrix of kernels: for each case and target the implementation that legalization chooses, whether it compiles, and
whether its numbers match the reference. `python -P -m fxhlo.tools.kernel_matrix [KERNEL | TARGET]...` writes docs/kernels.json.

Comes in: `Kernel.cases`, the targets. Goes out: one `Outcome` per kernel, case and target, in a fixed order.
Guaranteed: a case runs end to end: torch op, composite, legalization, compiler. A compiler that aborts its process is an
outcome too, since each group of cases runs in a process of its own; unchecked outcomes are marked.

Numbers are checked where a case makes values: on a device of the target where one is here, else once per implementation,
Pallas kernels in Pallas' interpreter. `make conformance` runs all of it; a test compares the choices alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..kernels.catalog import kernels, register_torch_ops
from ..kernels.spec import Case, Implementation, Kernel, Operands
from ..passes.torch_private import parse_schema
from ..runtime.core.errors import FxhloError
from ..runtime.core.plugins import has_cuda_plugin
from ..runtime.core.targets import KNOWN, Target
from .differences import difference
from .imports import import_words

if TYPE_CHECKING:
    import torch

    from ..runtime.core import pjrt

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "docs" / "kernels.json"
TARGETS = (*(name for name in KNOWN if name.startswith("tpu-")), "cuda-h100")
"""Compiled for without a device: by libtpu, and by jax's CUDA plugin where it is installed; a card only where a kernel has a form for it."""
CHECKED_ON = ("tpu-v6e", "cuda-h100")
"""A target of each family for which a kernel's numbers are checked in the interpreter: tile sizes differ little between generations."""
FAST = {"exec_time_optimization_effort": -1.0}
SECONDS = 900


@dataclass(frozen=True)
class Outcome:
    """compiled, checked: "yes", "no: ...", or "not run". difference: of the numbers, as a fraction of the largest magnitude."""

    kernel: str
    version: int
    case: str
    dtype: str
    target: str
    implementation: str
    reasons: tuple[str, ...] = ()
    compiled: str = "not run"
    checked: str = "not run"
    difference: float | None = None


def chosen(kernel: Kernel, case: Case, target: Target) -> Outcome:
    """The outcome as far as it is known before compilation."""
    operands = Operands.of(case.operands, case.operands.values())
    implementation, reasons = kernel.choice(operands, case.attributes, target)
    dtypes = dict.fromkeys(spec.dtype.name for spec in case.operands.values() if spec.dtype.kind not in "iub")
    narrow = [spec.dtype.name for name, spec in case.operands.items() if name == "kv_cache" or "weight" in name]
    dtype = "/".join(dict.fromkeys([next(iter(dtypes), "int32"), *narrow]))
    name = implementation.name if implementation else "reference"
    return Outcome(kernel.name, kernel.version, case.name, dtype, str(target), name, reasons)


def module_of(kernel: Kernel, case: Case) -> bytes:
    """The portable module of one call: `torch.ops.fxhlo.<kernel>` over the case's operands, captured and emitted."""
    import torch

    from ..lowering.capture.callable import Input, capture_callable
    from ..lowering.emit.emit import emit
    from ..lowering.types import FROM_NUMPY
    from ..passes import mlir

    register_torch_ops()
    op = getattr(torch.ops.fxhlo, kernel.name)
    schema = parse_schema(f"fxhlo::{kernel.schema}")
    absent = {argument.name: None for argument in schema.arguments if argument.name not in case.operands}
    names = tuple(case.operands)

    def call(*tensors: torch.Tensor) -> Any:
        return op(**{**absent, **dict(zip(names, tensors, strict=True)), **case.attributes})

    inputs = [Input(name, spec.shape, FROM_NUMPY[spec.dtype]) for name, spec in case.operands.items()]
    results = [f"result_{place}" for place in range(len(schema.returns))]
    program = capture_callable(call, torch.nn.Module(), inputs, {}, results=results, name=kernel.name)
    return mlir.bytecode(emit(program, {}).module)


def compiled(kernel: Kernel, case: Case, target: Target) -> pjrt.Compiled:
    """The case's module, legalized and compiled for `target`. Raises FxhloError."""
    from ..passes.hlo.legalize import legalize
    from ..runtime.core import pjrt

    legalized = legalize(module_of(kernel, case), target)
    options = FAST if target.family == "tpu" else None
    return pjrt.build(legalized.bytecode, target, options=options, custom_calls=legalized.custom_calls)


def interpreted(implementation: Implementation, case: Case, arrays: Mapping[str, np.ndarray], target: Target) -> Any:
    """The implementation's results on the CPU, its Pallas calls in Pallas' interpreter."""
    import jax
    from jax.experimental.pallas import tpu as pltpu

    from ..runtime.core.plugins import settle

    settle()
    lower = implementation.bound(target)
    with pltpu.force_tpu_interpret_mode(True):  # type: ignore[arg-type]  # the plain interpreter: faster
        results = jax.jit(lambda given: lower(**given, **case.attributes))(dict(arrays))
    return results if isinstance(results, tuple | list) else (results,)


def checked(kernel: Kernel, case: Case, outcome: Outcome, executable: pjrt.Compiled | None) -> Outcome:
    """Checks the outcome's numbers if the case makes values and a device or the interpreter can run them."""
    from ..runtime.core import pjrt

    target = Target.parse(outcome.target)
    implementation, _ = kernel.choice(Operands.of(case.operands, case.operands.values()), case.attributes, target)
    if case.values is None:
        return outcome
    arrays = case.values(np.random.default_rng(0))
    if isinstance(executable, pjrt.Loaded):
        buffers = [executable.device.put(np.ascontiguousarray(arrays[name])) for name in case.operands]
        results = [pjrt.get(buffer) for buffer in executable.execute(buffers)]
    elif implementation is not None and _is_checked(implementation, target):
        results = [np.asarray(one) for one in interpreted(implementation, case, arrays, target)]
    else:
        return outcome
    apart = difference(kernel, case, results, arrays)
    right = "yes" if apart <= case.tolerance else f"no: {apart:.2g} apart, {case.tolerance:g} is allowed"
    return replace(outcome, checked=right, difference=apart)


def _is_checked(implementation: Implementation, target: Target) -> bool:
    """Whether the interpreter checks it on this target; what is for any target, once."""
    return str(target) in CHECKED_ON and (implementation.target != "any" or str(target) == CHECKED_ON[0])


def run_case(kernel: Kernel, case: Case, target: Target) -> Outcome:
    """Chooses, compiles and checks one case on one target."""
    outcome, executable = chosen(kernel, case, target), None
    try:
        executable = compiled(kernel, case, target)
        outcome = replace(outcome, compiled="yes")
    except FxhloError as problem:
        outcome = replace(outcome, compiled=f"no: {problem.message.splitlines()[0][:300]}")
    return checked(kernel, case, outcome, executable)


# -- one process per kernel and target -----------------------------------------------------------------------------


def run_group(name: str, target: str, say: Callable[[str], None], imports: Sequence[str] = ()) -> Iterator[Outcome]:
    """The outcomes of one kernel on one target. imports: what the worker imports first (`--import`)."""
    kernel = kernels()[f"fxhlo.{name}"]
    cases = kernel.cases()
    command = [sys.executable, "-P", "-m", "fxhlo.tools.kernel_matrix", "--worker", name, target, *imports]
    for place, found in enumerate(restarted(command, len(cases))):
        if isinstance(found, str):
            yield replace(chosen(kernel, cases[place], Target.parse(target)), compiled=f"no: {found}")
        else:
            yield Outcome(**{**found, "reasons": tuple(found["reasons"])})
    say(f"{name} on {target}: {len(cases)} cases")


def restarted(command: Sequence[str], count: int) -> Iterator[dict[str, Any] | str]:
    """Yields a worker's output: a JSON object per case, or a text for a case that ended the process; the worker restarts after it.

    The worker is called with the first case's number as its last word, and runs from there to the end.
    """
    first = 0
    while first < count:
        try:
            done = subprocess.run([*command, str(first)], capture_output=True, text=True, timeout=SECONDS)
            lines, ended = done.stdout.splitlines(), f"the process ended with {done.returncode}: {_last(done.stderr)}"
        except subprocess.TimeoutExpired as late:
            lines, ended = (late.stdout or b"").decode().splitlines(), f"no answer within {SECONDS} s"
        for line in lines:
            if line.startswith("{"):
                yield json.loads(line)
                first += 1
        if first < count:
            yield ended
            first += 1


def _last(text: str) -> str:
    return next((line.strip()[:200] for line in reversed(text.splitlines()) if line.strip()), "")


def worker(name: str, target: str, first: int) -> None:
    """Prints an outcome per case as JSON lines; runs in the process that `run_group` starts."""
    kernel = kernels()[f"fxhlo.{name}"]
    for case in kernel.cases()[first:]:
        print(json.dumps(asdict(run_case(kernel, case, Target.parse(target)))), flush=True)


def matrix(
    targets: Sequence[str] = TARGETS, names: Sequence[str] = (), say: Callable[[str], None] = lambda line: None
) -> list[Outcome]:
    """The outcomes of all kernels that have cases (or those of `names`), on all targets."""
    found: list[Outcome] = []
    for kernel in kernels().values():
        if kernel.cases() and (not names or kernel.name in names):
            for target in targets_of(kernel):
                if target in targets:
                    found += run_group(kernel.name, target, say)
    return found


def targets_of(kernel: Kernel) -> list[str]:
    """The targets that the kernel has columns for."""
    forms = {one.target for one in kernel.implementations}
    return [name for name in TARGETS if KNOWN[name].family == "tpu" or KNOWN[name].family in forms]


def write(outcomes: Sequence[Outcome], path: Path = RECORD) -> None:
    """docs/kernels.json: one line per outcome, the figures rounded to be the same on every machine."""
    lines = []
    for one in outcomes:
        shown = None if one.difference is None or not np.isfinite(one.difference) else float(f"{one.difference:.1g}")
        lines.append(json.dumps(asdict(replace(one, difference=shown))))
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def read(path: Path = RECORD) -> list[Outcome]:
    """Reads the outcomes of the last run."""
    return [Outcome(**{**one, "reasons": tuple(one["reasons"])}) for one in json.loads(path.read_text())]


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        import_words(sys.argv[4:-1])
        worker(sys.argv[2], sys.argv[3], int(sys.argv[-1]))
        return
    targets, names = (
        [word for word in sys.argv[1:] if word in TARGETS],
        [word for word in sys.argv[1:] if word not in TARGETS],
    )
    if not has_cuda_plugin() and not targets:
        print(
            "NOT RUN for cuda-h100: jax's CUDA plugin is not installed (docs/quickstart_gpu.md); its rows are kept",
            file=sys.stderr,
        )
        targets = [name for name in TARGETS if not name.startswith("cuda")]
    outcomes = matrix(targets or TARGETS, names, lambda line: print(line, file=sys.stderr, flush=True))
    write(merged(read() if RECORD.exists() else [], outcomes))
    print(RECORD)


def merged(before: Sequence[Outcome], made: Sequence[Outcome]) -> list[Outcome]:
    """What was made now, and of other kernels and targets what was recorded before, for as long as the kernel has the case."""
    kept = {(one.kernel, one.target) for one in before} - {(one.kernel, one.target) for one in made}
    cases = {(kernel.name, case.name) for kernel in kernels().values() for case in kernel.cases()}
    found = [*made, *(one for one in before if (one.kernel, one.target) in kept and (one.kernel, one.case) in cases)]
    order = [kernel.name for kernel in kernels().values()]
    return sorted(found, key=lambda one: (order.index(one.kernel), TARGETS.index(one.target)))


if __name__ == "__main__":
    main()
