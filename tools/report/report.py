"""Reports on one compiled step: whether it fits, where the time goes, how each composite was implemented.

Comes in: a portable module with its signature, legalization's decisions, and the compiled program (None where it did not
fit). Goes out: a `StepReport` of plain numbers, for show.py, page.py and --json.
Guaranteed: no weight is read; bytes and flops come from the modules, rates from the target.

Bounds are times: max(flops / peak, bytes / bandwidth) of each op, summed. `roofline` sums the model's lower bounds
(ideal.py); `bound` sums the compiled program's costs (hlo.py), where a Pallas kernel counts with its composite's roofline, and
a loop whose rounds depend on data with as many rounds as the roofline of its module path takes: it may not look
faster than what it must do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import TYPE_CHECKING

from ...kernels.catalog import kernels
from ...runtime.core.targets import Target
from .hlo import Cost, Optimized
from .ideal import folded, ideal

if TYPE_CHECKING:
    from ...lowering.module import HloModule
    from ...passes.hlo.legalize import Decision, Legalized
    from ...runtime.core.errors import OutOfMemoryError
    from ...runtime.core.pjrt import Compiled


@dataclass(frozen=True)
class Fit:
    """Bytes on one device. temporaries and program: None where the compiler was not run or did not report them."""

    weights: int
    caches: int
    inputs: int
    temporaries: int | None
    program: int | None
    needed: int
    available: int

    @property
    def fits(self) -> bool:
        return self.needed <= self.available

    @property
    def devices(self) -> int:
        """The number of devices with that much memory in total."""
        return ceil(self.needed / self.available)


@dataclass(frozen=True)
class Row:
    """A line of a table: module path or op kind. Seconds; None where there is no compiled program.

    unknown_loops: loops in it whose trip counts depend on data: `bound`, `flops` and `bytes` are lower bounds then.
    """

    name: str
    count: int
    flops: float
    bytes: float
    roofline: float
    bound: float | None
    cycles: int | None
    unknown_loops: int = 0


@dataclass(frozen=True)
class Composite:
    """How `count` composites were implemented. reasons: why earlier implementations were not taken. operands: a line for each
    of their types."""

    kernel: str
    became: str
    count: int
    reasons: tuple[str, ...]
    operands: str


@dataclass(frozen=True)
class Total:
    """Sums over the step. `outside`: without Pallas kernels, the part that the compiler is responsible for."""

    flops: float
    bytes: float
    roofline: float
    bound: float | None = None
    outside_roofline: float | None = None
    outside_bound: float | None = None
    compiled_flops: float | None = None
    compiled_bytes: float | None = None
    cycles: int | None = None
    unknown_loops: int | None = None


@dataclass(frozen=True)
class StepReport:
    """The report of one bucket. paths: rows by module path; kinds: by kind of op, where it was compiled; longest first."""

    name: str
    target: str
    fit: Fit
    total: Total
    paths: tuple[Row, ...]
    kinds: tuple[Row, ...]
    composites: tuple[Composite, ...]

    def to_json(self) -> dict[str, object]:
        """Converts to JSON values; sizes in bytes, times in seconds."""
        made = asdict(self)
        made["fit"] |= {"fits": self.fit.fits, "devices": self.fit.devices}
        return made


def step_report(
    name: str,
    module: HloModule,
    legalized: Legalized,
    target: Target,
    compiled: Compiled | None,
    too_large: OutOfMemoryError | None = None,
) -> StepReport:
    """Makes the report. compiled: None where it does not fit; too_large: then the compiler's error, if it was run."""
    fit = memory(module, target, compiled, too_large)
    least = ideal(module.module, module.signature)
    opaque = _opaque(legalized.decisions, target)
    made = None
    if compiled is not None:
        made = with_rounds(_with_kernels(Optimized.parse(compiled.text), least, opaque), least, target)
    return StepReport(
        name,
        str(target),
        fit,
        _total(least, made, opaque, target),
        _rows(least, made, target, lambda cost: folded(cost).path or "(the step itself)"),
        _rows(least if made is None else [], made, target, lambda cost: cost.kind),
        composites(legalized.decisions),
    )


def memory(
    module: HloModule, target: Target, compiled: Compiled | None, too_large: OutOfMemoryError | None = None
) -> Fit:
    """The step's use of the device's memory: as the compiler counts it, or at least its arguments."""
    sizes = {"weight": 0, "buffer": 0, "constant": 0, "input": 0, "state": 0}
    for argument in module.signature.arguments:
        sizes[argument.kind] += argument.nbytes
    weights = sizes["weight"] + sizes["buffer"] + sizes["constant"]
    needed = weights + sizes["state"] + sizes["input"]
    temporaries = program = None
    if compiled is not None:
        stats = compiled.memory
        temporaries, program = stats.temporaries, stats.code
        needed = stats.arguments + stats.outputs - stats.aliased + temporaries + program
    elif too_large is not None:
        needed = max(needed, too_large.needed)
        temporaries = needed - weights - sizes["state"] - sizes["input"]
    return Fit(weights, sizes["state"], sizes["input"], temporaries, program, needed, target.memory or 0)


def bound(cost: Cost, target: Target) -> float:
    """Lower bound in seconds: the larger of bytes over bandwidth and flops over peak rate."""
    rate = target.flops(cost.dtype) or target.flops("bfloat16") or 0.0
    return max(cost.bytes / target.bandwidth if target.bandwidth else 0.0, cost.flops / rate if rate else 0.0)


def _opaque(decisions: Iterable[Decision], target: Target) -> set[tuple[str, str]]:
    """(composite, operand types) that became a kernel of the target, which is opaque in the compiler's text."""
    found = set()
    for decision in decisions:
        kernel = kernels().get(decision.kernel)
        for one in kernel.implementations if kernel else ():
            if one.name == decision.implementation and one.target == target.family:
                found.add((decision.kernel, decision.operands))
    return found


def _with_kernels(program: Optimized, least: Sequence[Cost], opaque: set[tuple[str, str]]) -> list[Cost]:
    """The compiled program's costs, with kernels' replaced by the lower bounds of their composites."""
    kept = [cost for cost in program.costs if cost.kind != "kernel"]
    return kept + [cost for cost in least if (cost.kind, cost.operands) in opaque]


def with_rounds(made: Sequence[Cost], least: Sequence[Cost], target: Target) -> list[Cost]:
    """Multiplies the costs of loops with unknown trip counts by the smallest count at which their module path takes as long,
    and has as many flops, as its roofline."""
    measures: tuple[Callable[[Cost], float], ...] = (lambda cost: bound(cost, target), lambda cost: cost.flops)
    rounds: dict[str, int] = {}
    for path in dict.fromkeys(cost.path for cost in made if cost.loop):
        rounds[path] = 1
        for measure in measures:
            needed = sum(measure(cost) for cost in least if cost.path == path)
            outside = sum(measure(cost) for cost in made if cost.path == path and not cost.loop)
            once = sum(measure(cost) for cost in made if cost.path == path and cost.loop)
            rounds[path] = max(rounds[path], ceil((needed - outside) / once) if once else 1)
    return [cost.times(rounds[cost.path]) if cost.loop else cost for cost in made]


def _total(least: Sequence[Cost], made: Sequence[Cost] | None, opaque: set[tuple[str, str]], target: Target) -> Total:
    sums = (sum(cost.flops for cost in least), sum(cost.bytes for cost in least))
    roofline = sum(bound(cost, target) for cost in least)
    if made is None:
        return Total(*sums, roofline)
    inside = sum(bound(cost, target) for cost in least if (cost.kind, cost.operands) in opaque)
    # A fusion overlaps traffic and compute, so its bound can be below the sum of its ops'; but no program beats the roofline.
    whole = max(sum(bound(cost, target) for cost in made), roofline)
    return Total(
        *sums,
        roofline,
        whole,
        roofline - inside,
        whole - inside,
        sum(cost.flops for cost in made),
        sum(cost.bytes for cost in made),
        sum(cost.cycles for cost in made),
        len({cost.loop for cost in made if cost.loop}),
    )


def _rows(
    least: Sequence[Cost], made: Sequence[Cost] | None, target: Target, key: Callable[[Cost], str]
) -> tuple[Row, ...]:
    """A row per key, the longest first."""
    names = dict.fromkeys(key(cost) for cost in [*least, *(made or ())])
    rows = []
    for name in names:
        mine = [cost for cost in least if key(cost) == name]
        theirs = None if made is None else [cost for cost in made if key(cost) == name]
        shown = mine if theirs is None else theirs
        rows.append(
            Row(
                name,
                len(shown),
                sum(cost.flops for cost in shown),
                sum(cost.bytes for cost in shown),
                sum(bound(cost, target) for cost in mine),
                None if theirs is None else sum(bound(cost, target) for cost in theirs),
                None if theirs is None else sum(cost.cycles for cost in theirs),
                len({cost.loop for cost in shown if cost.loop}),
            )
        )
    return tuple(sorted(rows, key=lambda row: -max(row.roofline, row.bound or 0.0)))


def composites(decisions: Iterable[Decision]) -> tuple[Composite, ...]:
    """How the composites were implemented, grouped by kernel and outcome regardless of operand shapes."""
    found: dict[tuple[str, str, tuple[str, ...]], Composite] = {}
    for one in decisions:
        became = one.implementation or "its reference"
        before = found.get((one.kernel, became, one.reasons))
        count, operands = (
            (before.count + one.count, f"{before.operands}\n{one.operands}") if before else (one.count, one.operands)
        )
        found[one.kernel, became, one.reasons] = Composite(one.kernel, became, count, one.reasons, operands)
    return tuple(found.values())
