"""The op-database run beside the peers: the same pairs and samples through torchax and torch-mlir, compared with eager torch.

    python -P tests/conformance/peers.py run [--every 24] [--ways torchax,torch-mlir] [--jobs 2] [--samples 5]
    python -P tests/conformance/peers.py report [--every 24]

`--every N` takes every N-th of the (op, dtype) pairs, in the order of the database, over the dtypes for which the peers were
counted before (float32, bfloat16, int64, bool); 1 is all of them, some hours on two cores. Outcomes go to
build/conformance/<way>.jsonl, a line a pair, and a run goes on where it stopped. fxhlo's are those of op_db.py, which is run first.

A peer gets torch's own export and decomposition, and the kindest reading of what follows: whatever it raises while it lowers is a
refusal; a result of another dtype than eager torch's is converted and noted as its reason; wrong is what it computes otherwise (by
op_db.py's comparison, where random numbers count by shape and dtype); a crash is a module that XLA does not take or run, or a process that died or was late.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves the script's folder out, and so do workers

import op_db

from fxhlo.tools.bench import peers

op_db.LIMIT = 60.0  # torch-mlir's pipeline does not end for some modules
WAYS = ("fxhlo", *peers.PEERS)
STATUSES = {"passed": "#3a8f5c", "refused": "#c9c9c9", "wrong": "#d97706", "crash": "#b91c1c"}


# -- one pair, in a worker that has the peer on its path -----------------------------------------------------------


def attempt(way: str, op: Any, samples: list[Any]) -> tuple[str, str]:
    """(status, reason) of some samples in one module."""
    import differential
    import torch

    function, tensors = op_db.call_of(op, samples)
    try:
        exported = torch.export.export(differential.Call(function), tuple(differential.clone(tensors)), strict=False)
        decomposed = exported.run_decompositions()
        lowered = LOWER[way](decomposed)
    except Exception as problem:
        return "refused", op_db.short(f"{type(problem).__name__}: {problem}")
    expected = differential.eager(function, tensors)
    try:
        actual = outcome(decomposed, lowered(differential.clone(tensors)))
    except Exception as problem:
        return "crash", op_db.short(f"running: {type(problem).__name__}: {problem}")
    other = converted(actual, expected)
    try:
        op_db.compare(op, samples, function, tensors, expected, actual, draws(exported))
    except AssertionError as problem:
        return "wrong", op_db.short(str(problem))
    return "passed", other


def outcome(exported: Any, results: list[Any]) -> Any:
    """The results; new values of inputs that the program mutates come before the others, where they come at all."""
    import differential

    signature = exported.graph_signature
    mutated = [signature.user_inputs.index(name) for name in signature.user_inputs_to_mutate.values()]
    if len(results) < len(mutated) + len(signature.user_outputs):
        return differential.Outcome(results, {})
    return differential.Outcome(results[len(mutated) :], dict(zip(mutated, results, strict=False)))


def converted(actual: Any, expected: Any) -> str:
    """Gives each result the dtype that eager torch's has, and says which had another."""
    import torch

    said = []
    for index, (ours, theirs) in enumerate(zip(actual.results, expected.results, strict=False)):
        dtype = torch.as_tensor(theirs).dtype
        if ours.dtype != dtype:
            said.append(f"result {index} is {ours.dtype}, not {dtype}")
            actual.results[index] = ours.to(dtype)
    return "; ".join(said)


def draws(exported: Any) -> bool:
    import torch

    targets = {node.target for node in exported.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
    return any(torch.Tag.nondeterministic_seeded in target.tags for target in targets)


def by_torchax(exported: Any) -> Any:
    """torchax in its accuracy mode, in which 64-bit dtypes are kept."""
    import differential
    import jax
    import numpy as np

    from fxhlo.lowering.module import as_numpy

    torchax = peers.import_torchax()
    torchax.enable_accuracy_mode()
    weights, lowered = torchax.export.exported_program_to_stablehlo(exported)

    def call(tensors: list[Any]) -> list[Any]:
        arrays = [jax.numpy.asarray(as_numpy(tensor)) for tensor in tensors]
        results = jax.tree.leaves(lowered.call(weights, (arrays,)))
        return [differential.as_tensor(np.asarray(result)) for result in results]

    return call


def by_torch_mlir(exported: Any) -> Any:
    import differential
    import jax
    import numpy as np

    from fxhlo.lowering.module import as_numpy

    text = peers.lower_by_torch_mlir(exported)

    def call(tensors: list[Any]) -> list[Any]:
        client, devices, options = differential._client()
        executable = client.compile_and_load(text.encode(), devices, options)
        with jax.enable_x64(True):
            buffers = [jax.device_put(np.array(as_numpy(tensor)), devices[0]) for tensor in tensors]
            shards = executable.execute_sharded(buffers).disassemble_into_single_device_arrays()
            return [differential.as_tensor(np.asarray(one[0])) for one in shards]

    return call


LOWER = {"torchax": by_torchax, "torch-mlir": by_torch_mlir}
"""Way -> (decomposed program -> function from the inputs to the results)."""


# -- all pairs, in the parent --------------------------------------------------------------------------------------


def run(way: str, pairs: list[tuple[str, str]], samples: int, jobs: int, out: Path) -> None:
    """Adds what is not known yet to the way's file."""
    path = out / f"{way}.jsonl"
    known = op_db.load(path)
    todo = [pair for pair in pairs if pair not in known]
    command = [__file__, "work", "--ways", way, "--samples", str(samples)]
    with path.open("a") as file:
        for outcome in op_db.run(todo, jobs, command, peers.environment(peers.PEERS[way])) if todo else ():
            print(json.dumps(asdict(outcome)), file=file, flush=True)


def report(pairs: list[tuple[str, str]], every: int, out: Path) -> str:
    """The table over the pairs that all ways have been through, written beside a picture."""
    found = {way: op_db.load(out / ("results.jsonl" if way == "fxhlo" else f"{way}.jsonl")) for way in WAYS}
    shared = [pair for pair in pairs if all(pair in outcomes for outcomes in found.values())]
    counts = {way: Counter(outcomes[pair].status for pair in shared) for way, outcomes in found.items()}
    lines = [
        f"every {every}. pair of {', '.join(op_db.ORIENTATION)}: {len(shared)} of {len(pairs)} pairs have been through all three",
        "",
        "| | " + " | ".join(STATUSES) + " |",
        "|---|" + "---:|" * len(STATUSES),
    ]
    for way in WAYS:
        version = f" {peers.PEERS[way].version}" if way in peers.PEERS else ""
        lines.append(f"| {way}{version} | " + " | ".join(str(counts[way][status]) for status in STATUSES) + " |")
    table = "\n".join(lines)
    (out / "peers.md").write_text(table + "\n")
    plot(counts, len(shared), out / "peers.png")
    return table


def plot(counts: Mapping[str, Mapping[str, int]], pairs: int, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 2.6), layout="constrained")
    left = [0] * len(WAYS)
    for status, color in STATUSES.items():
        widths = [counts[way].get(status, 0) for way in WAYS]
        axes.barh(WAYS, widths, left=left, label=status, color=color)
        left = [one + other for one, other in zip(left, widths, strict=True)]
    axes.set_xlabel(f"{pairs} pairs of op and dtype from torch's operator database")
    axes.invert_yaxis()
    figure.legend(ncols=len(STATUSES), loc="outside upper center", frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report", "work"])
    parser.add_argument("--every", type=int, default=24)
    parser.add_argument("--ways", default=",".join(LOWER))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--ops", default="", help="regular expression on the op's name")
    parser.add_argument("--out", type=Path, default=op_db.OUT)
    options = parser.parse_args()
    ways = options.ways.split(",")
    if options.command == "work":
        op_db.work(options.samples, lambda op, samples: attempt(ways[0], op, samples))
        return
    pairs = [pair for pair in op_db.pairs(op_db.ORIENTATION)[:: options.every] if re.search(options.ops, pair[0])]
    options.out.mkdir(parents=True, exist_ok=True)
    if options.command == "run":
        for way in ways:
            run(way, pairs, options.samples, options.jobs, options.out)
    print(report(pairs, options.every, options.out))


if __name__ == "__main__":
    main()
