"""docs/models.md, from docs/models.json: every key of vLLM's registry, and what became of it in the last run. `make docs` writes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from .catalog import ARCHITECTURES, KINDS, kind_of
from .compare import REFUSED_AS_A_WHOLE
from .outcome import Outcome
from .record import Record

POOLERS = ("Embedding", "Late interaction", "Reward", "Classification of sequences", "Classification of tokens")
POOLING = "Those of the table in tests/vllm/pooling_models.py are compared with transformers, within 1e-4 in float32 (tests/vllm/test_pooling.py).\n"
MEANS = {
    "served": "served, and equal to transformers",
    "differs": "**differs** from transformers",
    "captures": "captures: every op can be lowered; not compared",
    "refused": "refused",
    "failed": "does not start with the small config.json that was tried",
    "no reference": "transformers could not make the model",
}
INTRODUCTION = """\
Every key of vLLM's registry, and what became of it. **Served** was compared: a small model with random weights, in float32, through an engine, beside
transformers; greedy tokens equal, log-probabilities of the answers and of the prompts within 1e-3 (a column has the largest difference); prompts of 1
to 200 tokens, batched and alone, whole and in chunks of 64, from the prefix cache (a column: what was found), preempted and resumed. **Captures** is what
`lower-model check` says of a small config.json. **Refused** is an error at the start, with the reason, before a weight is loaded. Where the small config.json
itself does not suit vLLM's class, the row says so: nothing is known of published models then.

`{command}` on {date} ({versions}) wrote docs/models.json, of which this page is made; tests/engine/test_architectures.py holds the tree against it, a few
in `make test`, all in `make conformance`. `python -P -m fxhlo.tools.architectures NAME` shows one. Models of your own, registered with vLLM or known to
transformers alone: tests/engine/test_out_of_tree.py.
"""


CODE = "its config class is code in the model's repository, which vLLM's class asks for by name: it needs --trust-remote-code, and was not tried"
NOTES = {
    "DeciLMForCausalLM": CODE,
    "GteNewModel": CODE,
    "GteNewForSequenceClassification": CODE,
    "ColBERTJinaRobertaModel": CODE,
    "EmbeddingGemma2Model": "multimodal: vLLM's module needs transformers' processors of images, and torchvision",
    "Terratorch": "for images of the earth: vLLM's module needs the package terratorch",
}
"""What is not seen from a config.json of the keys that are not compared."""


def page(notice: str) -> str:
    record = Record.load()
    versions = ", ".join(f"{name} {number}" for name, number in record.versions.items())
    lines = [notice, "# Models\n", INTRODUCTION.format(command=record.command, date=record.date, versions=versions)]
    lines += _summary(record)
    seen: set[str] = set()
    for title, keys in record.registry.items():
        fresh = [key for key in keys if key not in seen]
        seen.update(keys)
        lines += [
            f"\n## {title}\n",
            *(_refused(title, fresh) if title in REFUSED_AS_A_WHOLE else _table(record, fresh)),
        ]
    others = [name for name in record.outcomes if name not in seen]
    lines += ["\n## In no registry: known to transformers alone\n", *_table(record, others)]
    return "\n".join(lines) + "\n"


def _summary(record: Record) -> list[str]:
    lines = ["| kind of text model | compared | served |", "|---|---:|---:|"]
    for kind, group in KINDS.items():
        found = [record.outcomes[one.name].status for one in group if one.name in record.outcomes]
        lines.append(f"| {kind} | {len(found)} | {found.count('served')} |")
    return lines


def _table(record: Record, keys: Iterable[str]) -> list[str]:
    lines = ["| architecture | kind | | difference | from the prefix cache | |", "|---|---|---|---:|---:|---|"]
    rows = []
    for key in keys:
        outcome = record.outcomes.get(key) or record.examined.get(key)
        if outcome is not None:
            rows.append(outcome.status)
            lines.append(_row(key, outcome))
    counts = ", ".join(f"{count} {status}" for status, count in Counter(rows).items())
    return [f"{counts}.\n", *lines]


def _row(key: str, outcome: Outcome) -> str:
    known = ARCHITECTURES.get(key)
    kind = kind_of(key) if known else ""
    difference = f"{outcome.difference:.0e}" if outcome.runs else ""
    cached = next((run.note for run in outcome.runs if run.name == "cached"), "")
    said = "" if outcome.status == "captures" else outcome.reason
    told = "; ".join(one for one in (NOTES.get(key, said), known.note if known else "") if one)
    return f"| {key} | {kind} | {MEANS[outcome.status]} | {difference} | {cached} | {_cell(told)} |"


def _cell(text: str) -> str:
    short = text if len(text) < 240 else text[:236] + " ..."
    return short.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")


def _refused(title: str, keys: Iterable[str]) -> list[str]:
    return [f"{REFUSED_AS_A_WHOLE[title]} (tests/vllm/test_refusals.py): {', '.join(keys)}."]
