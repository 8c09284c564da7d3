"""Examines architectures that are not compared, as `lower-model check` does: config.json alone, no weights.

Comes in: a folder with a config.json a line of standard input, named as a key of vLLM's registry. Goes out: an `Outcome` a line: captures, refused
(with the reason), or failed (where the config does not suit vLLM's class, or something is at fault).

    python -P -m fxhlo.tools.architectures.examine
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

from ..check_model import examined
from ..lower.capture import load_libraries
from ..models import opened
from .outcome import Outcome
from .serve import is_refusal, told


def examine(folder: Path) -> Outcome:
    """What `lower-model check FOLDER` says."""
    begun = perf_counter()
    try:
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
    for line in sys.stdin:
        print(json.dumps(asdict(examine(Path(line.strip())))), file=out, flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
