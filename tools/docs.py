"""Writes the generated pages below docs/: ops.md, kernels.md, passes.md, models.md, measured.md, gpu.md, and the tables of README. `make docs`; a test compares
them with the tree.

Comes in: the registries of this installation, docs/op_db.json, which `make conformance` writes, and the records of docs/bench. Goes out: one text
a page, the same on every machine.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from inspect import getdoc
from itertools import groupby
from pathlib import Path

import torch

from ..kernels.catalog import kernels
from ..lowering.decompositions.table import decompositions
from ..lowering.left_out import LEFT_OUT
from ..lowering.registry import Rule, overload_name, rules
from ..passes.base import Pass
from ..passes.fx.random_key import DISTRIBUTIONS
from ..passes.options import options
from .architectures import page as models
from .bench import page as measured
from .gpu import record as gpu
from .kernel_matrix import Outcome
from .kernel_matrix import read as read_matrix

ROOT = Path(__file__).resolve().parents[1]
OP_DB = ROOT / "docs" / "op_db.json"
"""Results of the last `make conformance`; tests/conformance/op_db.py writes it."""
NOTICE = "<!-- written by `make docs`; do not edit -->\n"


def first_sentence(thing: object) -> str:
    """The first sentence of a docstring, on one line."""
    text = " ".join((getdoc(thing) or "").split())
    head, dot, _ = text.partition(". ")
    return head + dot.strip()


# -- docs/passes.md ------------------------------------------------------------------------------------------------


def passes_page() -> str:
    """Every pass in the order in which it runs."""
    from ..passes.default import default_passes
    from .lower.capture import example_step_passes

    return "\n".join(
        [
            NOTICE,
            "# Passes\n",
            "`lower-model MODEL --stop-after passes --print-after NAME` prints the graph after one of them; `--pass-option NAME.OPTION=VALUE`",
            "changes an option, `--list-passes` lists them; `--explain` says which rewrites declined, with the line. In a step the engine sets the options.\n",
            "## Of any model (passes/default.py)\n",
            _passes_table(default_passes()),
            "## Of vLLM's step (`step_passes` in runtime/vllm/steps/passes.py)\n",
            _passes_table(example_step_passes()),
        ]
    )


def _passes_table(passes: tuple[Pass, ...]) -> str:
    rows = ["| pass | what it does | options with their defaults | file |", "|---|---|---|---|"]
    for step in passes:
        file = type(step).__module__.removeprefix("fxhlo.").replace(".", "/") + ".py"
        given = ", ".join(f"`{one.name}={one.text}`" for one in options(type(step)))
        rows.append(f"| `{step.name}` | {step.summary()} | {given} | {file} |")
    return "\n".join(rows) + "\n"


# -- docs/kernels.md -----------------------------------------------------------------------------------------------


REFUSED = [
    "\n## What is no operand\n",
    "A wrong rank, dtype or size is an error of the call, whoever implements the kernel: of tracing the reference, and of a native kernel",
    "at its door, before it touches memory. For values that are places there is one rule:\n",
    "- **A read outside is an error**: a token that is not in the vocabulary (`logprobs`), a page that the cache or the request does not have,",
    "  rows outside the batch (`varlen_attention`; `ragged_paged_attention`, where a request reads it; the rest of a block table may be anything), a row that",
    "  does not exist (`select_rows`). Eager torch raises IndexError, a native kernel INVALID_ARGUMENT, in the same words. What XLA or Mosaic",
    "  compiles cannot raise: there the place is clamped into its range, as by StableHLO's gather, and no other memory is read.",
    "- **A write outside is dropped**, everywhere: a slot outside the cache (-1: padding), a bias or a penalty of an id outside the vocabulary",
    "  (-1: unused).",
]


def kernels_page() -> str:
    """Every kernel, its implementations in the order in which they are tried, and the source of its semantics."""
    lines = [
        NOTICE,
        "# Kernels\n",
        "A kernel is emitted as `stablehlo.composite` with its reference as decomposition; legalization takes the first",
        "implementation whose `supports` has no objection, else the reference. `lower-model MODEL --explain` says which and why.\n",
        "| composite | version | what | implementations | aliases |",
        "|---|---|---|---|---|",
    ]
    for name, kernel in kernels().items():
        ways = [f"{one.name} ({one.target})" for one in kernel.implementations] + ["reference (any)"]
        aliases = ", ".join(f"result {result} is operand {operand}" for result, operand in kernel.aliases.items())
        what = first_sentence(sys.modules[f"fxhlo.kernels.{kernel.name.replace('ragged_', '')}"])
        lines.append(f"| `{name}` | {kernel.version} | {what} | {', '.join(ways)} | {aliases} |")
    lines += REFUSED
    lines.append("\n## Schemas and sources\n")
    for name, kernel in kernels().items():
        source = f" Source: {kernel.source}." if kernel.source else ""
        lines.append(f"- `{name}`: `{kernel.schema}`.{source}")
    return "\n".join([*lines, *kernel_matrix()]) + "\n"


def kernel_matrix() -> list[str]:
    """A table per kernel of docs/kernels.json: shape class by target."""
    outcomes = read_matrix()
    lines = [
        "\n## What is compiled and checked\n",
        "Each shape class goes the whole way for each target, without a device: torch op, composite, legalization, the target's compiler.",
        "A cell is the implementation that was taken; **bold** where the compiler refused it; a number refers to the reasons for a fallback.",
        "Numbers: the largest difference from the reference, as a part of its largest magnitude, in Pallas' interpreter (0: equal bit for bit).",
        "`make matrix` writes the record, `make conformance` compares it with this tree.",
    ]
    for name, group in groupby(outcomes, key=lambda one: one.kernel):
        lines += ["", f"### fxhlo.{name}\n", *_matrix_of(list(group))]
    return lines


def _matrix_of(outcomes: list[Outcome]) -> list[str]:
    targets = list(dict.fromkeys(one.target for one in outcomes))
    cells: dict[tuple[str, str], dict[str, Outcome]] = {}
    for one in outcomes:
        cells.setdefault((one.case, one.dtype), {})[one.target] = one
    notes: dict[str, int] = {}
    lines = [f"| shape class | dtype | {' | '.join(targets)} | numbers |", "|---" * (len(targets) + 3) + "|"]
    for (case, dtype), row in cells.items():
        shown = []
        for target in targets:
            if target not in row:
                shown.append("")
                continue
            one = row[target]
            reason = "; ".join(one.reasons) if one.compiled == "yes" else one.compiled.removeprefix("no: ")
            mark = f" ({notes.setdefault(reason, len(notes) + 1)})" if reason else ""
            shown.append(f"{one.implementation}{mark}" if one.compiled == "yes" else f"**{one.implementation}**{mark}")
        figures = [one for one in row.values() if one.checked != "not run"]
        numbers = "; ".join(f"{one.difference:g}" if one.checked == "yes" else f"**{one.checked}**" for one in figures)
        lines.append(f"| {case} | {dtype} | {' | '.join(shown)} | {numbers} |")
    return [*lines, "", *(f"{number}. {reason}" for reason, number in notes.items())]


# -- docs/ops.md ---------------------------------------------------------------------------------------------------


def ops_page() -> str:
    """Ops that are lowered, and how; ops that are left out, and why; and the results of the operator database."""
    taken_apart = sum(op.namespace == "aten" for op in decompositions())  # others depend on what else is imported
    lines = [
        NOTICE,
        "# Ops\n",
        f"{len(own_rules())} overloads have a rule, {taken_apart} more of ATen are taken apart by torch's decompositions, "
        "into ops that have one.\n",
        "## torch's operator database\n",
        op_db_table(),
        "## Core ATen\n",
        core_table(),
        "## Left out\n",
        "| what | why |",
        "|---|---|",
        *[f"| {', '.join(f'`{name}`' for name in entry.ops)} | {entry.reason} |" for entry in LEFT_OUT],
        "\n## Rules, by file\n",
    ]
    by_file: Callable[[tuple[str, Rule]], str] = lambda item: item[1].__module__  # noqa: E731
    for module, items in groupby(sorted(own_rules().items(), key=lambda item: (by_file(item), item[0])), key=by_file):
        file = module.removeprefix("fxhlo.").replace(".", "/") + ".py"
        lines.append(f"### {file}\n")
        lines.append(", ".join(f"`{name}`" for name, _ in items) + "\n")
    return "\n".join(lines)


def own_rules() -> dict[str, Rule]:
    """Overload -> rule, of this tree alone: a user, or a test, may have registered more."""
    return {name: rule for name, rule in rules().items() if rule.__module__.startswith("fxhlo.")}


def op_db_table() -> str:
    """Pairs of op and dtype by outcome, and every one that did not pass."""
    found = json.loads(OP_DB.read_text())
    lines = [
        "Every op of `torch.testing._internal.common_methods_invocations.op_db`, forward, with up to "
        f"{found['samples']} of its samples per dtype: exported, decomposed, lowered, compiled and compared with eager torch. `make conformance` "
        "writes this table; passed, refused (said before anything is compiled), wrong, crashed.\n",
        "| dtype | pairs | passed | refused | wrong | crash |",
        "|---|---|---|---|---|---|",
    ]
    for dtype, counts in found["counts"].items():
        statuses = [counts.get(status, 0) for status in ("passed", "refused", "wrong", "crash")]
        lines.append(f"| {dtype} | {sum(statuses)} | " + " | ".join(str(count) for count in statuses) + " |")
    lines += ["\nWhat did not pass:\n", "| op | dtypes | outcome |", "|---|---|---|"]
    for entry in found["others"]:
        lines.append(f"| {entry['op']} | {', '.join(entry['dtypes'])} | {entry['status']}: {entry['reason']} |")
    return "\n".join(lines) + "\n"


def core_table() -> str:
    """Every overload that torch tags as core, by the way it is lowered."""
    taken_apart = {overload_name(op) for op in decompositions()}
    left_out = {name for entry in LEFT_OUT for name in entry.ops}
    drawn = {overload_name(op) for op in DISTRIBUTIONS}
    names = ("a rule", "a decomposition", "a draw from rng_key", "a size, bound at emission", "left out")
    ways: dict[str, list[str]] = {name: [] for name in names}
    missing = []
    for name in core_overloads():
        if name in own_rules():
            ways["a rule"].append(name)
        elif name in drawn:
            ways["a draw from rng_key"].append(name)
        elif name in left_out:
            ways["left out"].append(name)
        elif name.startswith("aten.sym_"):
            ways["a size, bound at emission"].append(name)
        elif name in taken_apart:
            ways["a decomposition"].append(name)
        else:
            missing.append(name)
    lines = ["| way | overloads |", "|---|---|"]
    lines += [f"| {way} ({len(names)}) | {', '.join(f'`{name}`' for name in names)} |" for way, names in ways.items()]
    if missing:
        lines.append(f"| **not yet** ({len(missing)}) | {', '.join(f'`{name}`' for name in missing)} |")
    return "\n".join(lines) + "\n"


def core_overloads() -> list[str]:
    """The overloads of torch's core ATen set, without out= forms."""
    found = []
    for name in dir(torch.ops.aten):
        packet = getattr(torch.ops.aten, name)
        for overload in getattr(packet, "overloads", list)():
            op = getattr(packet, overload)
            if torch.Tag.core in op.tags and not op._schema.is_mutable:
                found.append(overload_name(op))
    return sorted(found)


PAGES: dict[str, Callable[[], str]] = {
    "ops.md": ops_page,
    "kernels.md": kernels_page,
    "passes.md": passes_page,
    "models.md": lambda: models.page(NOTICE),
    "measured.md": lambda: measured.page(NOTICE),
    "gpu.md": lambda: gpu.page(gpu.read()),
}


def main() -> None:
    written = {ROOT / "docs" / name: page() for name, page in PAGES.items()}
    written[ROOT / "README.md"] = measured.readme((ROOT / "README.md").read_text())
    for path, text in written.items():
        path.write_text(text)
        print(path)


if __name__ == "__main__":
    main()
