"""The layers of served models that kernels are compiled for, and the forms of each that are compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ....kernels.moe.cases import MODELS as MIXTURES
from ....kernels.paged_attention.cases import specs as paged
from ....kernels.paged_latent_attention.cases import MODELS as LATENTS
from ....kernels.paged_latent_attention.cases import specs as latents
from ....kernels.ragged_causal_conv1d.cases import BFLOAT16, operands_of
from ....kernels.ragged_gated_delta_rule.cases import specs as delta_rule
from ....kernels.ragged_lightning_attention.cases import specs as lightning
from ....kernels.ragged_selective_scan.cases import specs as scan
from ....kernels.ragged_ssd.cases import specs as ssd
from ....kernels.spec import TensorSpec

TARGETS = ("tpu-v5e", "tpu-v6e", "tpu-7x")
CONTEXT, PAGE = 2048, 16


@dataclass(frozen=True)
class Step:
    """rows of requests, evenly, each at the end of a context of so many tokens."""

    rows: int
    requests: int
    context: int = CONTEXT

    def __str__(self) -> str:
        if self.rows == self.requests:
            return f"{self.rows} requests, a row each, contexts of {self.context:,}"
        before = self.context - self.each
        after = f" after {before:,} tokens" if before else ""
        return f"{self.requests} requests of {self.each:,} rows{after}"

    @property
    def each(self) -> int:
        """Rows of a request."""
        return self.rows // self.requests


DECODE, PREFILL = Step(64, 64), Step(1024, 2)
PROMPT = Step(2048, 2, 1024)


@dataclass(frozen=True)
class Layer:
    """One call of a kernel. kernel: without `fxhlo.`. step: None where rows are of no request (experts). forms: by name, see forms.py."""

    kernel: str
    model: str
    step: Step | None
    operands: Mapping[str, TensorSpec]
    attributes: Mapping[str, Any]
    forms: tuple[str, ...]
    targets: tuple[str, ...] = TARGETS

    @property
    def name(self) -> str:
        """Of the step, in words."""
        return str(self.step) if self.step else f"{next(iter(self.operands.values())).shape[0]:,} rows"


def layers() -> tuple[Layer, ...]:
    return (*_experts(), *_attentions(), *_latents(), *_states())


def _experts() -> Iterator[Layer]:
    for model in ("Qwen3 30B-A3B", "gpt-oss 120b", "DeepSeek V3, 64 of 256 experts", "Qwen3-Next 80B"):
        mixture, attributes = MIXTURES[model]
        for rows in (8, 2048):
            yield Layer("moe", model, None, mixture.specs(rows, BFLOAT16), attributes, ("pallas", "ragged dot", "xla"))


def _attentions() -> Iterator[Layer]:
    """The wheel's kernel, whose block sizes are tuned for v6e, beside ours on that alone."""
    kernel, both = "ragged_paged_attention", ("pallas", "xla")
    models: tuple[tuple[str, tuple[int, int, int], dict[str, Any]], ...] = (
        ("Qwen3 30B-A3B", (32, 4, 128), {}),
        ("gpt-oss 120b", (64, 8, 64), {"extras": ("sinks",)}),
        ("Qwen3-Next 80B", (16, 2, 256), {}),
    )
    for model, sizes, extras in models:
        for step in (DECODE, PREFILL):
            yield Layer(kernel, model, step, _pages(step, sizes, PAGE, **extras), _attention(sizes), both)
    for heads, kv_heads, page in ((32, 8, 16), (32, 8, 128), (64, 8, 64), (8, 1, 64), (32, 32, 64)):
        sizes, model = (heads, kv_heads, 128), f"{heads} heads on {kv_heads}, pages of {page}"
        for step in (DECODE, PREFILL) if heads == 32 and kv_heads == 8 else (DECODE,):
            forms, where = ("pallas", "wheel"), ("tpu-v6e",)
            yield Layer(kernel, model, step, _pages(step, sizes, page), _attention(sizes), forms, where)


def _pages(step: Step, sizes: tuple[int, int, int], page: int, **extras: Any) -> dict[str, TensorSpec]:
    return paged(step.rows, *sizes, page, step.requests, CONTEXT // page, **extras)


def _attention(sizes: tuple[int, int, int]) -> dict[str, Any]:
    return {"scale": sizes[2] ** -0.5, "sliding_window": 0, "soft_cap": 0.0, "chunk": 0}


def _latents() -> Iterator[Layer]:
    """XLA's forms of a prefill for two models; they take long to compile and are much slower on both."""
    kernel = "ragged_paged_latent_attention"
    for model, sizes in LATENTS.items():
        named = {"scale": (sizes.nope + sizes.rotary) ** -0.5, "sliding_window": 0}
        for step in (DECODE, PROMPT, PREFILL):
            beside = model in ("DeepSeek-V2-Lite", "DeepSeek-V2, V3") and step is not PROMPT
            forms: tuple[str, ...] = ("pallas", "xla") if beside else ("pallas",)
            if step is not DECODE:
                forms = ("absorbed", "decompressed", *(("xla", "xla, decompressed") if beside else ()))
            operands = latents(step.rows, sizes, PAGE, step.requests, CONTEXT // PAGE)
            yield Layer(kernel, model, step, operands, named, forms)


def _states() -> Iterator[Layer]:
    named = {"scale": 128**-0.5, "l2norm": True}
    for step in (DECODE, PREFILL):
        rows, requests = step.rows, step.requests
        steps = ("pallas", "xla")
        rule, kda = (
            delta_rule(rows, 16, 32, 128, 128, requests),
            delta_rule(rows, 32, 32, 128, 128, requests, channels=True),
        )
        yield Layer("ragged_gated_delta_rule", "Qwen3-Next 80B", step, rule, named, steps)
        yield Layer("ragged_gated_delta_rule", "Kimi Linear 48B", step, kda, named, steps)
        yield Layer("ragged_ssd", "Mamba 2 2.7B", step, ssd(rows, 80, 64, 1, 128, requests), {}, steps)
        yield Layer(
            "ragged_lightning_attention", "MiniMax-Text-01", step, lightning(rows, 64, 128, requests), {}, steps
        )
        yield Layer("ragged_selective_scan", "Falcon Mamba, Jamba", step, scan(rows, 8192, 16, requests), {}, steps)
        conv = operands_of({"values": (rows, 8192), "weight": (8192, 4)}, (3, 8192), requests, BFLOAT16, BFLOAT16)
        yield Layer("ragged_causal_conv1d", "Qwen3-Next 80B", step, conv, {"silu": True}, ("reference",))
