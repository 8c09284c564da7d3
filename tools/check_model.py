"""`lower-model check`: lists every op of a model that cannot be lowered, without weights or a device."""

from __future__ import annotations

import json
from dataclasses import asdict

from . import console
from .lower.capture import capture, load_libraries
from .models import opened


def check_model(
    word: str,
    *,
    dtype: str = "auto",
    max_model_len: int | None = None,
    as_json: bool = False,
) -> None:
    """Prints what cannot be lowered: ops without a rule, and what a rule refuses; exit code 1 where there is something."""
    from ..lowering.emit.coverage import everything_missing
    from ..passes.contract import ContractError, Missing, next_step_for
    from ..passes.pipeline import run

    ops = 0
    missing: tuple[Missing, ...] = ()
    next_step: str | None = None
    with opened(word) as model:
        with console.stage("libraries", quiet=as_json):
            load_libraries(model)
        try:
            captured = capture(model, dtype, max_model_len, quiet=as_json)
            with console.stage("passes", quiet=as_json):
                program = run(captured.passes, captured.program)
            ops = sum(node.op == "call_function" for node in program.graph.nodes)
            missing = everything_missing(program)
            next_step = next_step_for(missing) if missing else None
        except ContractError as problem:
            missing, next_step = problem.missing, problem.next_step
    if as_json:
        facts = [{"op": (fact := asdict(one)).pop("overload"), **fact} for one in missing]
        answer = {"model": model.name, "ops": ops, "missing": facts, "next": next_step}
        console.put(json.dumps(answer, indent=2))
    elif missing:
        console.put(f"{model.name}: {len(missing)} kinds of ops cannot be lowered")
        for one in missing:
            console.put(f"  {one}")
        console.put(f"  next: {next_step}")
    else:
        console.put(f"{model.name}: all {ops} ops can be lowered")
    if missing:
        raise SystemExit(1)
