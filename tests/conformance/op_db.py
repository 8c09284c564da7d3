"""The op-database run: every op of torch's own operator database, lowered and compared with eager torch.

    python -P tests/conformance/op_db.py run [--every 12] [--jobs 2] [--samples 5] [--dtypes float32,bfloat16] [--ops REGEX] [--again wrong,crash]
    python -P tests/conformance/op_db.py report

`run` writes a JSON line per (op, dtype) pair to build/conformance/fxhlo.jsonl and goes on where it stopped, unless the code
has changed since (tests/conformance/workers.py); it ends with the table, and table.md and plot.png beside the outcomes. `--every N`
takes every N-th op with all its dtypes. `report` writes docs/op_db.json as well, of which `make docs` makes docs/ops.md.

Statuses of a pair, over all its samples: passed; refused (fxhlo said, before compiling anything, that it does not
lower this); wrong (dtype, shape or values differ from eager torch); crash (any other error, a dead or late process).
A pair of which eager torch runs no sample is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves the script's folder out, and so do workers

import workers
from workers import ROOT, Outcome, Pair, short

from fxhlo.runtime.core import files

OUT = ROOT / "build" / "conformance"
RECORD = ROOT / "docs" / "op_db.json"
DTYPES = ("float32", "bfloat16", "float16", "int8", "int32", "int64", "bool", "float8_e4m3fn", "float8_e5m2")
ORIENTATION = ("float32", "bfloat16", "int64", "bool")
"""The dtypes over which torchax and torch-mlir were counted."""
SAMPLES = 5
FIRST = ("neg", "float32")
"""What a worker does before it is ready: it imports everything and compiles once."""
COMPARISON = (
    Path(__file__),
    Path(workers.__file__),
    ROOT / "tests/lowering/differential.py",
    ROOT / "requirements.lock",
)
"""Files on which the outcomes of every way depend."""
CAPTURE = os.environ.get("FXHLO_CONFORMANCE_CAPTURE", "export")
"""How ops are captured: export, as users do, or make_fx as for vLLM's models (three times faster)."""


# -- one pair, in a worker -----------------------------------------------------------------------------------------


def pairs(dtypes: Iterable[str] = DTYPES, every: int = 1, ops: str = "") -> list[Pair]:
    """Every (op, dtype) that torch says the op supports on the CPU, forward: of every `every`-th op, of those that `ops` finds."""
    import torch

    found = []
    for name, op in list(database().items())[::every]:
        if not re.search(ops, name):
            continue
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
    if not samples:
        return Outcome(name, dtype, workers.EMPTY)
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

    from fxhlo.runtime.core.errors import FxhloError

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
        draws = any(argument.name == differential.RANDOM_KEY for argument in hlo.signature.arguments)
        compare(op, samples, function, tensors, expected, actual, draws)
    except AssertionError as problem:
        return "wrong", short(str(problem))
    return "passed", ""


def compare(
    op: Any, samples: list[Any], function: Any, tensors: list[Any], expected: Any, actual: Any, draws: bool
) -> None:
    """Eager torch's result within the tolerance that torch's database declares for the op; or, as torch's own reference tests have it,
    one at least as near to the float64 result."""
    import differential
    import torch

    if op.full_name in UNSPECIFIED or draws:  # torch's generator cannot be the module's: dtypes and shapes count
        for outcome in (expected, actual):
            outcome.results = [torch.zeros_like(torch.as_tensor(result)) for result in outcome.results]
            outcome.updates = {index: torch.zeros_like(value) for index, value in outcome.updates.items()}
    if op.full_name == "torch._scaled_mm":
        expected.results = [in_range(op, *pair) for pair in zip(samples, expected.results, strict=True)]
    try:
        differential.agree(expected, actual, **declared(op, [*expected.results, *tensors]))
    except AssertionError:
        if not same_places(op, samples, expected, actual) and not as_precise(function, tensors, expected, actual):
            raise


def declared(op: Any, values: list[Any]) -> dict[str, float]:
    """The tolerance that torch's database gives the op in all its tests on a CPU, for one of the dtypes of these values; else none.

    Few have one: scaled_dot_product_attention's scores of 200 make of the last bit of a sum 1e-5 of a weight."""
    from torch.testing._internal.common_device_type import toleranceOverride
    from torch.testing._internal.opinfo.core import DecorateInfo

    def of_all_tests(info: Any) -> bool:
        return info.cls_name in (None, "TestCommon") and info.test_name is None and info.device_type in (None, "cpu")

    dtypes = {value.dtype for value in values if hasattr(value, "dtype")}
    for info in op.decorators:
        for one in info.decorators if isinstance(info, DecorateInfo) and of_all_tests(info) else [info]:
            for dtype in dtypes.intersection(one.d) if isinstance(one, toleranceOverride) else ():
                return one.d[dtype]._asdict()
    return {}


def in_range(op: Any, sample: Any, result: Any) -> Any:
    """Beyond e4m3fn's range eager torch gives NaN or the largest number, as the kernel does that it has for operands and processor:
    what it gives in float32, cut off, has one meaning."""
    import torch

    if result.dtype is not torch.float8_e4m3fn:
        return result
    exact = op(sample.input, *sample.args, **{**sample.kwargs, "out_dtype": torch.float32})
    largest = torch.finfo(result.dtype).max
    return exact.clamp(-largest, largest).to(result.dtype)


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

    if op.name not in TIES or len(actual.results) != len(expected.results):
        return False
    ours, theirs = iter(actual.results), iter(expected.results)
    for sample in samples:
        count = len(differential.eager(*call_of(op, [sample])).results)
        if not same_places_of(op, sample, list(islice(theirs, count)), list(islice(ours, count))):
            return False
    return True


def same_places_of(op: Any, sample: Any, expected: list[Any], actual: list[Any]) -> bool:
    """`same_places` of the results of one sample."""
    import differential
    import torch

    source = sample.input
    dim = sample.kwargs.get(
        "dim", next((a for a in sample.args[(op.name in ("topk", "kthvalue")) :] if type(a) is int), -1)
    )
    keep = sample.kwargs.get("keepdim", len(sample.args) > 1 and sample.args[-1] is True)
    for index, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        theirs = torch.as_tensor(theirs)
        if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
            return False
        places = theirs.dtype is torch.int64 and ((len(expected), index) == (2, 1) or op.name == "argsort")
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


def work(limit: int, attempt: Attempt = attempt) -> None:
    """Answers pairs until there are no more. attempt: what lowers; tests/conformance/peers.py has others."""
    import warnings

    warnings.filterwarnings("ignore")
    sys.path.insert(0, str(ROOT / "tests" / "lowering"))
    import torch

    torch.set_num_threads(1)
    workers.serve(lambda name, dtype: run_pair(name, dtype, limit, attempt), FIRST)


# -- all pairs, in the parent --------------------------------------------------------------------------------------


def way(samples: int = SAMPLES) -> workers.Way:
    """fxhlo's own way."""
    floors = [ROOT / floor for floor in ("lowering", "passes", "kernels", "runtime")]
    digest = files.sources_digest([*floors, *COMPARISON], ROOT)
    return workers.Way((__file__, "work", "--samples", str(samples)), f"{digest}, {samples} samples, {CAPTURE}")


def run(
    pairs: Iterable[Pair], jobs: int, samples: int = SAMPLES, again: Iterable[str] = (), out: Path = OUT
) -> dict[Pair, Outcome]:
    """The outcomes of these pairs, with table.md and plot.png beside them. again: statuses to run again, or "all"."""
    again = set(again)
    found = workers.run(
        pairs, {"fxhlo": way(samples)}, jobs, out, lambda outcome: outcome.status in again or "all" in again
    )["fxhlo"]
    (out / "table.md").write_text(summary(found.values()) + "\n")
    counts = by_dtype(found.values())
    workers.bars(counts, "ops of torch's operator database", out / "plot.png")
    return found


def by_dtype(outcomes: Iterable[Outcome]) -> dict[str, Counter[str]]:
    """Dtype -> status -> number."""
    counts: dict[str, Counter[str]] = {dtype: Counter() for dtype in DTYPES}
    for outcome in outcomes:
        counts[outcome.dtype][outcome.status] += 1
    return counts


def summary(outcomes: Iterable[Outcome]) -> str:
    """The table: a line per dtype, one for the orientation set, one for all."""
    counts = by_dtype(outcomes)
    together = sum((counts[dtype] for dtype in ORIENTATION), Counter())
    rows = {**counts, ", ".join(ORIENTATION): together, "all": sum(counts.values(), Counter())}
    return "\n".join(workers.table("dtype", rows))


def record(outcomes: Iterable[Outcome], samples: int = SAMPLES, path: Path = RECORD) -> None:
    """What docs/ops.md is made of: counts per dtype, and what did not pass with its reason."""
    outcomes = [outcome for outcome in outcomes if outcome.status != workers.EMPTY]
    counts = {dtype: dict(found) for dtype, found in by_dtype(outcomes).items()}
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


def unexplained(outcomes: Iterable[Outcome], path: Path = RECORD) -> list[Outcome]:
    """The refused pairs that docs/ops.md does not list with a reason."""
    listed = {(other["op"], dtype) for other in json.loads(path.read_text())["others"] for dtype in other["dtypes"]}
    return [outcome for outcome in outcomes if outcome.status == "refused" and outcome.pair not in listed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report", "work"])
    parser.add_argument("--every", type=int, default=1, help="every N-th op")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--ops", default="", help="regular expression on the op's name")
    parser.add_argument("--again", default="", help="statuses to run again, or all")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    if options.command == "work":
        work(options.samples)
        return
    if options.command == "run":
        chosen = pairs(options.dtypes.split(","), options.every, options.ops)
        found = run(chosen, options.jobs, options.samples, options.again.split(","), options.out)
    else:
        found = workers.load(options.out / "fxhlo.jsonl", way(options.samples).code)
        record(found.values(), options.samples)
    print(summary(found.values()))


if __name__ == "__main__":
    main()
