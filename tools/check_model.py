"""`lower-model check`: lists every op of a model that cannot be lowered, without weights or a device."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from . import console
from .lower.capture import capture, load_libraries
from .models import Model, opened

if TYPE_CHECKING:
    from ..passes.contract import Missing


@dataclass(frozen=True)
class Examination:
    """ops: calls in the Program after its passes. missing: those that cannot be lowered; next_step: what to do about them."""

    ops: int
    missing: tuple[Missing, ...]
    next_step: str | None


def examined(model: Model, dtype: str = "auto", max_model_len: int | None = None, *, quiet: bool = True) -> Examination:
    """Captures the model and runs its passes. Raises FxhloError, UnsupportedError among them for a model that is refused."""
    from ..lowering.emit.coverage import everything_missing
    from ..passes.contract import ContractError, next_step_for
    from ..passes.pipeline import run

    try:
        captured = capture(model, dtype, max_model_len, quiet=quiet)
        with console.stage("passes", quiet=quiet):
            program = run(captured.passes, captured.program)
    except ContractError as problem:
        return Examination(0, problem.missing, problem.next_step)
    missing = everything_missing(program)
    ops = sum(node.op == "call_function" for node in program.graph.nodes)
    return Examination(ops, missing, next_step_for(missing) if missing else None)


def check_model(
    word: str,
    *,
    dtype: str = "auto",
    max_model_len: int | None = None,
    as_json: bool = False,
) -> None:
    """Prints what cannot be lowered: ops without a rule, and what a rule refuses; exit code 1 where there is something."""
    with opened(word) as model:
        with console.stage("libraries", quiet=as_json):
            load_libraries(model)
        found = examined(model, dtype, max_model_len, quiet=as_json)
    missing, next_step = found.missing, found.next_step
    if as_json:
        facts = [{"op": (fact := asdict(one)).pop("overload"), **fact} for one in missing]
        answer = {"model": model.name, "ops": found.ops, "missing": facts, "next": next_step}
        console.put(json.dumps(answer, indent=2))
    elif missing:
        console.put(f"{model.name}: {len(missing)} kinds of ops cannot be lowered")
        for one in missing:
            console.put(f"  {one}")
        console.put(f"  next: {next_step}")
    else:
        console.put(f"{model.name}: all {found.ops} ops can be lowered")
    if missing:
        raise SystemExit(1)
