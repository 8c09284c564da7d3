"""`lower-model check`: everything that stands between a model and StableHLO, at once, without weights or a device."""

from __future__ import annotations

import json

from . import console
from .lower_stages import capture, load_libraries
from .models import opened


def check_model(word: str, *, dtype: str = "auto", max_model_len: int | None = None, as_json: bool = False) -> None:
    """Prints what has no rule; exit code 1 where there is something."""
    from ..lowering.coverage import check
    from ..passes.contract import ContractError, Missing
    from ..passes.pipeline import run

    with opened(word) as model:
        with console.stage("libraries", quiet=as_json):
            load_libraries(model)
        with console.stage("capture", quiet=as_json):
            program, passes = capture(model, dtype, max_model_len)
        with console.stage("passes", quiet=as_json):
            program = run(passes, program)
        try:
            check(program)
            missing: tuple[Missing, ...] = ()
        except ContractError as problem:
            missing = problem.missing
    ops = sum(node.op == "call_function" for node in program.graph.nodes)
    if as_json:
        facts = [
            {"op": one.overload, "count": one.count, "where": one.where, "near_misses": list(one.near_misses)}
            for one in missing
        ]
        console.put(json.dumps({"model": model.name, "ops": ops, "missing": facts}, indent=2))
    elif missing:
        console.put(
            f"{model.name}: {len(missing)} kinds of ops have no rule (docs/add_an_op.md shows how to write one)"
        )
        for one in missing:
            console.put(f"  {one}")
    else:
        console.put(f"{model.name}: all {ops} ops have rules")
    if missing:
        raise SystemExit(1)
