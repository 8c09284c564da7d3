"""The op-database run: every op of torch's own operator database, lowered and compared with eager torch.

    python tests/conformance/op_db.py run [--jobs 2] [--samples 5] [--dtypes float32,bfloat16] [--ops REGEX] [--again wrong,crash]
    python tests/conformance/op_db.py report

`run` writes one JSON line per (op, dtype) pair to build/conformance/results.jsonl and goes on where it stopped; each
pair runs in a worker process with a time limit, so a crash or a hang is a result like any other. `report` prints the
table, writes table.md and plot.png beside the results, and docs/op_db.json, of which `make docs` makes docs/ops.md.

Statuses of a pair, over all its samples: passed; refused (fxhlo said, before compiling anything, that it does not
lower this); wrong (dtype, shape or values differ from eager torch); crash (any other error, a dead or late process).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "build" / "conformance"
DTYPES = ("float32", "bfloat16", "float16", "int8", "int32", "int64", "bool", "float8_e4m3fn", "float8_e5m2")
ORIENTATION = ("float32", "bfloat16", "int64", "bool")
"""The dtypes over which torchax and torch-mlir were counted."""
CAPTURE = os.environ.get("FXHLO_CONFORMANCE_CAPTURE", "export")
"""How ops are captured: export, as users do, or make_fx as for vLLM's models (three times faster)."""
LIMIT = 180.0
"""Seconds for one pair."""


@dataclass
class Outcome:
    op: str
    dtype: str
    status: str
    samples: int = 0
    reason: str = ""
    seconds: float = 0.0


# -- one pair, in a worker -----------------------------------------------------------------------------------------


def pairs(dtypes: Iterable[str] = DTYPES) -> list[tuple[str, str]]:
    """Every (op, dtype) that torch says the op supports on the CPU, forward."""
    import torch

    found = []
    for name, op in database().items():
        supported = op.supported_dtypes("cpu")
        found += [(name, dtype) for dtype in dtypes if getattr(torch, dtype) in supported]
    return found


def database() -> dict[str, Any]:
    from torch.testing._internal.common_methods_invocations import op_db

    return {op.full_name: op for op in op_db}


Attempt = Callable[[Any, list[Any]], tuple[str, str]]
"""(status, reason) of some samples of an op in one module."""


def run_pair(name: str, dtype: str, limit: int, attempt: Attempt) -> Outcome:
    """Lowers and runs the samples of one pair: all in one module where that works, else one by one."""
    import torch

    started = time.perf_counter()
    op = database()[name]
    torch.manual_seed(0)
    samples = choose(list(op.sample_inputs("cpu", getattr(torch, dtype), requires_grad=False)), limit)
    samples = [sample for sample in samples if eager_works(op, sample)]
    outcome = attempt(op, samples)
    if outcome[0] != "passed" and len(samples) > 1:
        outcomes = [attempt(op, [sample]) for sample in samples]
        worst = max(
            range(len(outcomes)), key=lambda index: ("passed", "refused", "wrong", "crash").index(outcomes[index][0])
        )
        outcome = outcomes[worst]
        if outcome[0] != "passed":
            outcome = (outcome[0], f"sample {worst}: {outcome[1]}")
    return Outcome(name, dtype, outcome[0], len(samples), outcome[1], round(time.perf_counter() - started, 2))


def choose(samples: list[Any], limit: int) -> list[Any]:
    """`limit` samples spread over all of them, the first and the last among them."""
    if len(samples) <= limit:
        return samples
    return [samples[round(index * (len(samples) - 1) / (limit - 1))] for index in range(limit)]


def eager_works(op: Any, sample: Any) -> bool:
    """Whether torch itself runs the sample (some dtypes are said to be supported and are not)."""
    import differential

    try:
        differential.eager(*call_of(op, [sample]))
    except Exception:
        return False
    return True


def call_of(op: Any, samples: list[Any]) -> tuple[Any, list[Any]]:
    """The samples as one function of all their tensors: everything else is a constant of the function."""
    import torch
    from torch.utils import _pytree as pytree

    calls, tensors = [], []
    for sample in samples:
        leaves, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
        places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        tensors += [leaves[index].detach() for index in places]
        calls.append((sample, leaves, spec, places))

    def function(*values: torch.Tensor) -> list[Any]:
        remaining, results = iter(values), []
        for sample, leaves, spec, places in calls:
            filled = list(leaves)
            for index in places:
                filled[index] = next(remaining)
            input_, args, kwargs = pytree.tree_unflatten(filled, spec)
            result = op(input_, *args, **kwargs)
            results.append(sample.output_process_fn_grad(result) if op.name in GAUGED else result)
        return results

    return function, tensors


def attempt(op: Any, samples: list[Any]) -> tuple[str, str]:
    """(status, reason) of some samples in one module."""
    import differential

    from fxhlo.runtime.errors import FxhloError

    function, tensors = call_of(op, samples)
    try:
        hlo = (
            differential.traced(function, tensors) if CAPTURE == "make_fx" else differential.lowered(function, tensors)
        )
    except FxhloError as problem:
        kind = "crash" if "bug of fxhlo" in str(problem) or " built " in str(problem) else "refused"
        return kind, short(f"{type(problem).__name__}: {problem}")
    except Exception as problem:
        return "crash", short(f"lowering: {type(problem).__name__}: {problem}")
    try:
        actual = differential.execute(hlo, tensors)
    except Exception as problem:
        return "crash", short(f"running: {type(problem).__name__}: {problem}")
    expected = differential.eager(function, tensors)
    try:
        draws = any(argument.name == differential.KEY for argument in hlo.signature.arguments)
        compare(op, samples, function, tensors, expected, actual, draws)
    except AssertionError as problem:
        return "wrong", short(str(problem))
    return "passed", ""


def compare(
    op: Any, samples: list[Any], function: Any, tensors: list[Any], expected: Any, actual: Any, draws: bool
) -> None:
    """Eager torch's result, or, as torch's own reference tests have it, one at least as near to the float64 result."""
    import differential
    import torch

    if op.full_name in UNSPECIFIED or draws:  # torch's generator cannot be the module's: dtypes and shapes count
        for outcome in (expected, actual):
            outcome.results = [torch.zeros_like(torch.as_tensor(result)) for result in outcome.results]
            outcome.updates = {index: torch.zeros_like(value) for index, value in outcome.updates.items()}
    try:
        differential.agree(expected, actual)
    except AssertionError:
        if not same_places(op, samples, expected, actual) and not as_precise(function, tensors, expected, actual):
            raise


def as_precise(function: Any, tensors: list[Any], expected: Any, actual: Any) -> bool:
    """Whether `actual` is at least as near to what float64 gives as eager torch is (with torch's own tolerance on top)."""
    import differential
    import torch

    wide = {
        torch.float32: torch.float64,
        torch.bfloat16: torch.float64,
        torch.float16: torch.float64,
        torch.complex64: torch.complex128,
    }
    try:
        precise = differential.eager(function, [tensor.to(wide.get(tensor.dtype, tensor.dtype)) for tensor in tensors])
    except Exception:
        return False
    if (
        len(actual.results) != len(expected.results)
        or len(precise.results) != len(expected.results)
        or expected.updates.keys() - actual.updates.keys()
    ):
        return False
    for ours, eager, best in zip(actual.results, expected.results, precise.results, strict=True):
        eager, best = torch.as_tensor(eager), torch.as_tensor(best)
        if ours.dtype != eager.dtype or ours.shape != eager.shape or best.shape != eager.shape:
            return False
        if torch.allclose(ours.to(best.dtype), eager.to(best.dtype), equal_nan=True):
            continue
        if not (ours.dtype.is_floating_point or ours.dtype.is_complex):
            return False
        distance, theirs = (
            (ours.to(best.dtype) - best).abs().nan_to_num(0, 0, 0),
            (eager.to(best.dtype) - best).abs().nan_to_num(0, 0, 0),
        )
        same_specials = torch.equal(ours.isnan(), best.isnan()) and torch.equal(
            ours.isinf(), best.to(ours.dtype).isinf()
        )
        scale = torch.finfo(ours.dtype).eps * best.abs().nan_to_num(0, 0, 0).max() if best.numel() else 0
        if not same_specials or bool(distance.max() > theirs.max() + 4 * scale):
            return False
    return all(
        torch.allclose(actual.updates[index], value, rtol=1.6e-2 if value.dtype.itemsize == 2 else 1e-5, equal_nan=True)
        for index, value in expected.updates.items()
    )


GAUGED = {"linalg.eigh", "linalg.svd", "svd"}
"""Ops whose vectors have no promised sign: compared by what torch's own samples make of them."""

TIES = {"argsort", "sort", "msort", "topk", "kthvalue", "mode", "median", "nanmedian", "min", "max"}
"""Ops that give places; of equal elements torch promises no order, so the places are compared by what stands there."""


def same_places(op: Any, samples: list[Any], expected: Any, actual: Any) -> bool:
    """Whether all results that are not places agree, and all that are places name equal elements, each once."""
    import differential
    import torch

    if op.name not in TIES or len(samples) != 1:
        return False
    source = samples[0].input
    dim = samples[0].kwargs.get(
        "dim", next((a for a in samples[0].args[(op.name in ("topk", "kthvalue")) :] if type(a) is int), -1)
    )
    keep = samples[0].kwargs.get("keepdim", len(samples[0].args) > 1 and samples[0].args[-1] is True)
    for ours, theirs in zip(actual.results, expected.results, strict=True):
        theirs = torch.as_tensor(theirs)
        if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
            return False
        places = theirs.dtype is torch.int64 and (
            (len(expected.results) == 2 and theirs is expected.results[1]) or op.name == "argsort"
        )
        if not places:
            differential._close(ours, theirs, "values", {"equal_nan": True})
            continue
        at = [one if one.ndim == source.ndim or keep else one.unsqueeze(dim) for one in (ours, theirs)]
        found = [source if not source.ndim else torch.gather(source, dim, one) for one in at]
        differential._close(*found, "elements at the places", {"equal_nan": True})
        if source.ndim and at[0].shape[dim] > 1:
            ordered = at[0].sort(dim).values
            if bool((ordered.diff(dim=dim) == 0).any()):
                return False
    return True


UNSPECIFIED = {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"}
"""Ops whose values nobody promises."""


def short(text: str, limit: int = 600) -> str:
    return text if len(text) <= limit else text[:limit] + " ..."


def work(limit: int, attempt: Attempt = attempt) -> None:
    """Reads "op dtype" lines, answers each with a JSON line. attempt: what lowers; tests/conformance/peers.py has others."""
    import warnings

    warnings.filterwarnings("ignore")
    sys.path.insert(0, str(ROOT / "tests" / "lowering"))
    import torch

    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        name, dtype = line.split()
        try:
            outcome = run_pair(name, dtype, limit, attempt)
        except Exception as problem:
            outcome = Outcome(name, dtype, "crash", 0, short(f"{type(problem).__name__}: {problem}"))
        print(json.dumps(asdict(outcome)), file=answers, flush=True)


# -- all pairs, in the parent --------------------------------------------------------------------------------------


class Worker:
    """A process that answers one pair at a time; replaced when it dies or is late."""

    def __init__(self, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        self.command, self.environment = command, environment
        self.process: subprocess.Popen | None = None
        self.pair: tuple[str, str] | None = None
        self.started = 0.0

    def give(self, pair: tuple[str, str]) -> None:
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", *self.command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=ROOT,
                env=self.environment,
            )
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(pair) + "\n")
        self.process.stdin.flush()
        self.pair, self.started = pair, time.monotonic()

    def answer(self, wait: float) -> Outcome | None:
        """The outcome if it is there within `wait` seconds, or the worker died or ran out of time."""
        assert self.process is not None and self.process.stdout is not None and self.pair is not None
        ready, _, _ = select.select([self.process.stdout], [], [], wait)
        if ready:
            line = self.process.stdout.readline()
            if line:
                return Outcome(**json.loads(line))
            return Outcome(*self.pair, "crash", 0, f"the process died with {self.process.wait()}")
        if time.monotonic() - self.started > LIMIT:
            self.process.kill()
            self.process.wait()
            return Outcome(*self.pair, "crash", 0, f"no answer within {LIMIT:.0f} s")
        return None

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait(timeout=20)


def run(
    todo: list[tuple[str, str]], jobs: int, command: list[str], environment: Mapping[str, str] | None = None
) -> Iterator[Outcome]:
    """Outcomes as they come. command: of a worker, without the interpreter."""
    waiting = list(reversed(todo))
    workers = [Worker(command, environment) for _ in range(min(jobs, len(todo)))]
    busy = []
    try:
        for worker in workers:
            worker.give(waiting.pop())
            busy.append(worker)
        while busy:
            for worker in list(busy):
                outcome = worker.answer(0.05)
                if outcome is None:
                    continue
                yield outcome
                if waiting:
                    worker.give(waiting.pop())
                else:
                    busy.remove(worker)
    finally:
        for worker in workers:
            worker.close()


def load(path: Path) -> dict[tuple[str, str], Outcome]:
    """The last outcome of every pair."""
    if not path.exists():
        return {}
    outcomes = (Outcome(**json.loads(line)) for line in path.read_text().splitlines() if line.strip())
    return {(outcome.op, outcome.dtype): outcome for outcome in outcomes}


def summary(outcomes: Iterable[Outcome]) -> str:
    """The table: a line per dtype, one for the orientation set, one for all."""
    outcomes = list(outcomes)
    statuses = ("passed", "refused", "wrong", "crash")
    lines = ["| dtype | pairs | " + " | ".join(statuses) + " |", "|---|" + "---|" * 5]
    groups = [(dtype, [o for o in outcomes if o.dtype == dtype]) for dtype in DTYPES]
    groups += [("float32, bfloat16, int64, bool", [o for o in outcomes if o.dtype in ORIENTATION]), ("all", outcomes)]
    for name, group in groups:
        counts = Counter(outcome.status for outcome in group)
        lines.append(f"| {name} | {len(group)} | " + " | ".join(str(counts[status]) for status in statuses) + " |")
    return "\n".join(lines)


def record(outcomes: Iterable[Outcome], samples: int, path: Path) -> None:
    """What docs/ops.md is made of: counts per dtype, and what did not pass with its reason."""
    outcomes = list(outcomes)
    counts = {dtype: dict(Counter(o.status for o in outcomes if o.dtype == dtype)) for dtype in DTYPES}
    groups: dict[tuple[str, str, str], list[str]] = {}
    for outcome in sorted(outcomes, key=lambda o: (o.op, DTYPES.index(o.dtype))):
        if outcome.status != "passed":
            groups.setdefault((outcome.op, outcome.status, in_short(outcome.reason)), []).append(outcome.dtype)
    others = [
        {"op": op, "status": status, "reason": reason, "dtypes": dtypes}
        for (op, status, reason), dtypes in groups.items()
    ]
    found = {"samples": samples, "counts": {k: v for k, v in counts.items() if v}, "others": others}
    path.write_text(json.dumps(found, indent=1) + "\n")


def in_short(reason: str) -> str:
    """The reason on one line, without places and numbers that differ between machines."""
    reason = re.sub(r"^sample \d+: ", "", reason)
    listed = re.search(r"^  (\S+ \(\d+x\).*)$", reason, re.MULTILINE)
    text = listed[1] if listed else reason.split("\n")[0]
    text = re.sub(r" ?\(\d+x\)| at /\S+:\d+|; there are rules for .*", "", text)
    return text.replace("|", "/")[:200]


def plot(outcomes: Iterable[Outcome], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    outcomes = list(outcomes)
    figure, axes = pyplot.subplots(figsize=(8, 3.5))
    left = [0] * len(DTYPES)
    for status, color in (("passed", "#3a8f5c"), ("refused", "#c9c9c9"), ("wrong", "#d97706"), ("crash", "#b91c1c")):
        counts = [sum(o.dtype == dtype and o.status == status for o in outcomes) for dtype in DTYPES]
        axes.barh(DTYPES, counts, left=left, label=status, color=color)
        left = [one + other for one, other in zip(left, counts, strict=True)]
    axes.set_xlabel("ops of torch's operator database")
    axes.invert_yaxis()
    axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.15), frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report", "work"])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--ops", default="", help="regular expression on the op's name")
    parser.add_argument("--again", default="", help="statuses to run again, or all")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    if options.command == "work":
        work(options.samples)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.jsonl"
    if options.command == "run":
        known = load(results)
        again = set(options.again.split(","))
        todo = [
            pair
            for pair in pairs(options.dtypes.split(","))
            if re.search(options.ops, pair[0]) and (pair not in known or known[pair].status in again or "all" in again)
        ]
        with results.open("a") as file:
            for outcome in run(todo, options.jobs, [__file__, "work", "--samples", str(options.samples)]):
                print(json.dumps(asdict(outcome)), file=file, flush=True)
                if outcome.status != "passed":
                    print(
                        f"{outcome.status:8} {outcome.op} {outcome.dtype}: {outcome.reason.splitlines()[0] if outcome.reason else ''}",
                        flush=True,
                    )
    outcomes = load(results).values()
    table = summary(outcomes)
    (options.out / "table.md").write_text(table + "\n")
    plot(outcomes, options.out / "plot.png")
    if options.command == "report":
        record(outcomes, options.samples, ROOT / "docs" / "op_db.json")
    print(table)


if __name__ == "__main__":
    main()
