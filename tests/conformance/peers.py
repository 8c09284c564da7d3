"""The op-database run beside the peers: the same pairs and samples through fxhlo, torchax and torch-mlir, compared with eager torch.

    python -P tests/conformance/peers.py run [--every 12] [--jobs 2] [--samples 5] [--ops REGEX]
    python -P tests/conformance/peers.py report [--every 12]

The pairs are those of op_db.py over the dtypes for which the peers were counted before (float32, bfloat16, int64, bool); `--every
N` takes every N-th op, 1 (the default) is all of them. The ways take each pair one after the other, with the same time for it, in
processes of their own. Outcomes go to build/conformance/<way>.jsonl, and a run goes on where it stopped; fxhlo's are shared
with op_db.py. Both commands end with the table, which is written to peers.md, with peers.png beside it.

A peer gets torch's own export and decomposition, and the kindest reading of what follows: whatever it raises while it lowers is a
refusal; a result of another dtype than eager torch's is converted and noted as its reason; wrong is what it computes otherwise (by
op_db.py's comparison, where random numbers count by shape and dtype); a crash is a module that XLA does not take or run, or a process that died or was late.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves the script's folder out, and so do workers

import op_db
import workers
from workers import Outcome, Pair, short

from fxhlo.runtime.core import files
from fxhlo.tools.bench import peers

WAYS = ("fxhlo", *peers.PEERS)
Outcomes = Mapping[str, Mapping[Pair, Outcome]]
"""Way -> pair -> outcome."""


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
        return "refused", short(f"{type(problem).__name__}: {problem}")
    expected = differential.eager(function, tensors)
    try:
        actual = outcome(decomposed, lowered(differential.clone(tensors)))
    except Exception as problem:
        return "crash", short(f"running: {type(problem).__name__}: {problem}")
    other = converted(actual, expected)
    try:
        op_db.compare(op, samples, function, tensors, expected, actual, draws(exported))
    except AssertionError as problem:
        return "wrong", short(str(problem))
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

    from fxhlo.lowering.lowered import as_numpy

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
    import numpy as np

    from fxhlo.lowering.lowered import as_numpy
    from fxhlo.runtime.core import pjrt

    text = peers.lower_by_torch_mlir(exported)

    def call(tensors: list[Any]) -> list[Any]:
        loaded = pjrt.compile(text.encode(), "cpu")
        results = loaded.execute([pjrt.put(np.array(as_numpy(tensor))) for tensor in tensors])
        return [differential.as_tensor(pjrt.get(result)) for result in results]

    return call


LOWER = {"torchax": by_torchax, "torch-mlir": by_torch_mlir}
"""Way -> (decomposed program -> function from the inputs to the results)."""


# -- all pairs, in the parent --------------------------------------------------------------------------------------


def way(name: str, samples: int = op_db.SAMPLES) -> workers.Way:
    """How a peer lowers; it is installed into build/peers where it is not there yet."""
    if name == "fxhlo":
        return op_db.way(samples)
    command = (__file__, "work", "--way", name, "--samples", str(samples))
    digest = files.sources_digest([Path(__file__), op_db.ROOT / "tools/bench/peers.py", *op_db.COMPARISON], op_db.ROOT)
    code = f"{peers.PEERS[name].version}, {digest}, {samples} samples"
    return workers.Way(command, code, peers.environment(peers.PEERS[name]))


def run(pairs: Iterable[Pair], jobs: int, samples: int = op_db.SAMPLES, out: Path = op_db.OUT) -> Outcomes:
    """The outcomes of these pairs by all ways, and their report."""
    found = workers.run(pairs, {name: way(name, samples) for name in WAYS}, jobs, out)
    report(found, out)
    return found


def load(pairs: Iterable[Pair], samples: int = op_db.SAMPLES, out: Path = op_db.OUT) -> Outcomes:
    """The outcomes of those of these pairs that all ways have been through, with this code."""
    known = {name: workers.load(out / f"{name}.jsonl", way(name, samples).code) for name in WAYS}
    return workers.shared(pairs, known)


def counts(found: Outcomes) -> dict[str, Counter[str]]:
    """Way -> status -> number of pairs."""
    return {name: Counter(outcome.status for outcome in outcomes.values()) for name, outcomes in found.items()}


def report(found: Outcomes, out: Path = op_db.OUT) -> str:
    """The table, which is written to `out` beside a picture."""
    titles = {name: f"{name} {peers.PEERS[name].version}" if name in peers.PEERS else name for name in found}
    rows = {titles[name]: counted for name, counted in counts(found).items()}
    table = "\n".join(workers.table("", rows))
    (out / "peers.md").write_text(table + "\n")
    label = f"{len(found['fxhlo'])} pairs of op and dtype from torch's operator database"
    workers.bars(rows, label, out / "peers.png")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report", "work"])
    parser.add_argument("--every", type=int, default=1, help="every N-th op")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--samples", type=int, default=op_db.SAMPLES)
    parser.add_argument("--ops", default="", help="regular expression on the op's name")
    parser.add_argument("--out", type=Path, default=op_db.OUT)
    parser.add_argument("--way", choices=list(LOWER), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.command == "work":
        op_db.work(options.samples, lambda op, samples: attempt(options.way, op, samples))
        return
    pairs = op_db.pairs(op_db.ORIENTATION, options.every, options.ops)
    if options.command == "run":
        found = run(pairs, options.jobs, options.samples, options.out)
    else:
        found = load(pairs, options.samples, options.out)
    print(f"{len(found['fxhlo'])} of {len(pairs)} pairs have been through all three\n")
    print(report(found, options.out))


if __name__ == "__main__":
    main()
