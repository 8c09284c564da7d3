"""Default sizes of the symbolic dimensions, without `--bucket`: those of the engine's largest step.

Comes in: the step's Program and its options. Goes out: a number per dimension. The engine reads the same options from vLLM's
config, and the same default for the size of the KV cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...passes.program import Program
    from ...runtime.vllm.steps.options import StepOptions

DIMENSIONS = ("tokens", "requests", "num_blocks", "num_slots")
"""Dimensions of vLLM's step, known before it is captured."""


def engine_sizes(program: Program, options: StepOptions) -> dict[str, int]:
    """Sizes of the largest step that vLLM's engine would serve this model with; {} for a program without these dimensions.

    num_blocks: as many as the default KV cache holds, and at least those of one request of the maximum length.
    num_slots: one for each request, and one more.
    """
    from ...runtime.vllm.memory import DEFAULT_KV_BYTES

    names = {dim.name for dim in program.dims}
    sizes = {"tokens": options.max_tokens, "requests": options.max_requests, "num_slots": options.slots}
    if block := _bytes_per_block(program):
        sizes["num_blocks"] = max(DEFAULT_KV_BYTES // block, options.pages)
    return {name: size for name, size in sizes.items() if name in names}


def with_defaults(given: Mapping[str, int], defaults: Mapping[str, int]) -> dict[str, int]:
    """The bucket of one program: the given sizes, and defaults for the rest.

    A step has no more requests than tokens: where one of them was given, the other's default is adjusted.
    """
    sizes = {**defaults, **given}
    if "tokens" in sizes and "requests" in sizes:
        if "requests" not in given:
            sizes["requests"] = min(sizes["requests"], sizes["tokens"])
        elif "tokens" not in given:
            sizes["tokens"] = max(sizes["tokens"], sizes["requests"])
    return sizes


def _bytes_per_block(program: Program) -> int:
    """Bytes that one block of the KV cache takes in all layers."""
    import torch

    symbols = {dim.name: dim.symbol for dim in program.dims}
    total = 0
    for node, argument in zip(program.placeholders, program.arguments, strict=True):
        value = node.meta.get("val")
        if argument.kind == "state" and isinstance(value, torch.Tensor):
            first = value.shape[0]
            if isinstance(first, torch.SymInt) and first.node.expr == symbols.get("num_blocks"):
                total += prod(int(size) for size in value.shape[1:]) * value.dtype.itemsize
    return total
