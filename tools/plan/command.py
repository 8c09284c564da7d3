"""`lower-model plan`: makes the plan of an engine's programs and shows it.

Comes in: a model and the engine's options. Goes out: the plan as a table, JSON that the engine takes, or a picture. Guaranteed: it is the
plan that the engine would make with the same options; no weight is read, and nothing is compiled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...runtime.core.errors import FxhloError
from ...runtime.core.targets import Target
from ...runtime.vllm.steps.planning.budget import Budget
from ...runtime.vllm.steps.planning.costs import Costs
from ...runtime.vllm.steps.planning.lengths import Lengths, read_lengths
from ...runtime.vllm.steps.planning.plan import expected_load, make_plan, uses
from ...runtime.vllm.steps.planning.proof import prove
from ...runtime.vllm.steps.planning.search import doubled_sizes, ordered, stretch
from .. import console
from ..console import UsageError
from ..lower.capture import check_architecture, load_libraries, taken_by_vllm
from ..lower.request import check_place
from ..models import opened
from .picture import page, svg
from .planned import Planned
from .show import text

SUFFIXES = (".json", ".svg", ".html")


def plan_model(
    model: str,
    options: Mapping[str, object],
    target: Target,
    lengths: str | None,
    budget: tuple[str, ...],
    output: Path | None,
    *,
    as_json: bool,
) -> None:
    """Runs the command. options: of vLLM's engine, by the names of its EngineArgs; None: the engine's own."""
    if output is not None:
        if output.suffix not in SUFFIXES:
            raise UsageError(
                f"-o {output}: a plan is written as {', '.join(SUFFIXES)}", next_step=f"-o {output.stem}.svg"
            )
        check_place(output, "-o")
    try:
        allowed = Budget.parse(budget)
    except FxhloError as problem:
        raise UsageError(f"--budget: {problem.message}", next_step=problem.next_step) from None
    made = planned(model, options, target, None if lengths is None else read_lengths(lengths), allowed, quiet=as_json)
    facts = json.dumps({**made.plan.to_json(), "doubled": _doubled(made)}, indent=1)
    if output is not None:
        drawn = {".json": lambda: facts, ".svg": lambda: svg(made), ".html": lambda: page(made)}[output.suffix]()
        try:
            output.write_text(drawn + "\n")
        except OSError as problem:
            raise FxhloError(
                f"the plan cannot be written: {problem.strerror}", where=output, next_step="name another file"
            ) from problem
        console.say(f"wrote {output}")
    if as_json:
        console.put(facts)
    elif output is None:
        console.put(text(made))


def planned(
    model: str,
    options: Mapping[str, object],
    target: Target,
    lengths: Lengths | None,
    budget: Budget | None,
    *,
    quiet: bool = True,
) -> Planned:
    """The plan of a model's engine. Raises FxhloError."""
    with opened(model) as found:
        if found.kind == "exported":
            raise UsageError(
                "a .pt2 has no scheduler, whose steps are planned", next_step="name a model folder or its config.json"
            )
        with console.stage("libraries", quiet=quiet):
            load_libraries(found)
        check_architecture(found)
        from ...runtime.vllm.compat import engine_config
        from ...runtime.vllm.steps.options import limits_of

        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        with taken_by_vllm(found):
            config = engine_config(str(found.path), **given)
    limits, costs = limits_of(config), Costs.of_engine(config, target)
    chunked = config.scheduler_config.enable_chunked_prefill
    plan = make_plan(limits, costs, lengths, budget, chunked=chunked)
    load = expected_load(limits, costs, lengths, chunked=chunked)
    usual = ordered(doubled_sizes(limits), costs)
    return Planned(
        found.name, str(target), plan, costs, load, tuple(uses(plan.buckets, costs, load)), prove(plan.buckets, limits),
        usual, stretch(usual, costs, load), lengths,
    )  # fmt: skip


def _doubled(made: Planned) -> dict[str, object]:
    return {"programs": len(made.usual), "stretch": round(made.usual_stretch, 4)}
