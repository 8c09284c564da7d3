"""What a user reads who plans an engine's programs, takes a profile of it, or starts it on several hosts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed import HashStore

from fxhlo.runtime.core.errors import FxhloError
from fxhlo.runtime.vllm.hosts import HostError, Hosts
from fxhlo.runtime.vllm.profiling.trace import ProfileError, TraceFile
from fxhlo.runtime.vllm.steps.kinds import Bucket, Limits
from fxhlo.runtime.vllm.steps.planning.costs import Costs
from fxhlo.runtime.vllm.steps.planning.lengths import LengthsError, read_lengths
from fxhlo.runtime.vllm.steps.planning.plan import PlanError, make_plan, read_plan
from fxhlo.runtime.vllm.steps.planning.proof import prove

LIMITS = Limits(256, 16, 512)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def differing_hosts(_: Path) -> None:
    store = HashStore()
    Hosts(0, 2, "10.0.0.1", store).compare({"block_size": 16})
    Hosts(1, 2, "10.0.0.1", store).compare({"block_size": 32})


CASES: dict[str, tuple[type[FxhloError], Callable[[Path], Any], str]] = {
    "a plan for other limits": (
        PlanError,
        lambda tmp: read_plan(
            written(tmp / "plan.json", json.dumps(make_plan(LIMITS, Costs()).to_json())), Limits(512, 16, 512)
        ),
        """\
the plan was made for other limits of the scheduler: tokens is 512 here and 256 in the plan
  at: TMP/plan.json
  next: start with the plan's own, or make it again: lower-model plan MODEL with the engine's options --json > TMP/plan.json""",
    ),
    "a step without a program": (
        FxhloError,
        lambda tmp: prove([Bucket.of(tokens=16, requests=16), Bucket.of(tokens=256, requests=8)], LIMITS),
        """\
the scheduler can ask for a step of tokens=17,requests=9, and no program holds it
  next: make the plan again with this engine's options: lower-model plan MODEL; without a plan, report this as a bug of fxhlo""",
    ),
    "a line that has no lengths": (
        LengthsError,
        lambda tmp: read_lengths(str(written(tmp / "lengths.csv", "prompt,output\n10,20\nten,20\n"))),
        """\
'ten,20' is not prompt,output in tokens
  at: TMP/lengths.csv:3
  next: write whole numbers, prompts from 1 on; or give a CSV of prompt,output lengths; .*""",
    ),
    "a profile that cannot be written": (
        ProfileError,
        lambda tmp: TraceFile(written(tmp / "file", "") / "below", "x"),
        """\
a profile cannot be written: Not a directory
  at: TMP/file/below
  next: name another folder, one that this user may write and whose disk has room""",
    ),
    "a host that is not like the first one": (
        HostError,
        differing_hosts,
        """\
host 1 differs from the first one: --block-size is 16 in the first host's engine and 32 here
  next: give every host the same command, but for --node-rank and --headless, the same model and the same versions""",
    ),
}
