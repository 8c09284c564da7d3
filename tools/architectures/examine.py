"""Examines architectures that are not compared, as `lower-model check` does: config.json alone, no weights.

Comes in: a folder a line of standard input, named as a key of vLLM's registry; a config.json is written into it. Goes out: an `Outcome` a line:
captures, refused (with the reason), or failed (where the config does not suit vLLM's class, or something is at fault). The line `registry` is
answered with every key, by what it is for.

    python -P -m fxhlo.tools.architectures.examine
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from time import perf_counter

from ..check_model import examined
from ..lower.capture import load_libraries
from ..models import opened
from .configs import write
from .outcome import Outcome
from .serve import is_refusal, told


def examine(folder: Path) -> Outcome:
    """What `lower-model check FOLDER` says."""
    begun = perf_counter()
    try:
        write(folder.name, folder)
        with opened(str(folder)) as model:
            load_libraries(model)
            found = examined(model, max_model_len=256)
    except Exception as problem:
        traceback.print_exc()
        return Outcome(folder.name, "refused" if is_refusal(problem) else "failed", told(problem))
    if found.missing:
        names = ", ".join(str(one) for one in found.missing)
        return Outcome(folder.name, "failed", f"cannot be lowered: {names}"[:500])
    return Outcome(folder.name, "captures", f"{found.ops} ops", seconds=perf_counter() - begun)


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import_module("...runtime.vllm.steps.capture", __package__)
    gc.freeze()  # what is imported stays, and a collection need not visit it
    for line in sys.stdin:
        if line.strip() == "registry":
            answer: object = import_module("...runtime.vllm.compat", __package__).registered()
        else:
            answer = asdict(examine(Path(line.strip())))
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
