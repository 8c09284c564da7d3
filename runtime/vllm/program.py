"""From a vLLM model to the Program of one engine step: capture, and the passes that make it a step.

The step: token ids and positions of all requests' tokens in, one sampled token per request out, the KV caches updated
in place. Captured once; every bucket is emitted from the same Program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ...lowering.capture.program import Input, capture_callable
from ...passes.base import Pass
from ...passes.fx.canonicalize import Canonicalize
from ...passes.fx.donate import Donate
from ...passes.fx.expand import Expand
from ...passes.fx.linear import Linear
from ...passes.fx.paged_attention import PagedAttention
from ...passes.fx.sample import Sample
from ...passes.fx.select_rows import SelectRows
from ...passes.fx.silu_and_mul import SiluAndMul
from ...passes.program import Program

if TYPE_CHECKING:
    from vllm.config import VllmConfig


@dataclass(frozen=True)
class StepOptions:
    """What the step's shapes depend on besides the buckets. block_size in tokens; lengths in tokens."""

    block_size: int
    max_model_len: int
    max_tokens: int
    max_requests: int
    logprobs: int
    bias: int = 1024
    logprobs_mode: str = "raw_logprobs"

    @property
    def pages(self) -> int:
        """Length of a request's block table."""
        return -(-self.max_model_len // self.block_size)

    @classmethod
    def of(cls, config: VllmConfig) -> StepOptions:
        return cls(
            block_size=config.cache_config.block_size,
            max_model_len=config.model_config.max_model_len,
            max_tokens=config.scheduler_config.max_num_batched_tokens,
            max_requests=config.scheduler_config.max_num_seqs,
            logprobs=_logprobs(config.model_config),
            logprobs_mode=config.model_config.logprobs_mode,
        )


def _logprobs(model_config: Any) -> int:
    """Columns of log-probabilities: at least one, at most the vocabulary, which is also what vLLM's -1 stands for."""
    vocabulary, most = model_config.get_vocab_size(), model_config.max_logprobs
    return vocabulary if most == -1 else min(max(1, most), vocabulary)


def capture_step(config: VllmConfig, model: torch.nn.Module) -> Program:
    """Captures vLLM's model and its logits; attention is still without a cache and nothing is sampled."""
    from .model import step_function

    options = StepOptions.of(config)
    inputs = (
        Input("input_ids", ("tokens",), torch.int32),
        Input("positions", ("tokens",), torch.int32),
        Input("logit_rows", ("requests",), torch.int32),
    )
    ranges = {
        "tokens": (1, max(options.max_tokens, options.max_model_len)),
        "requests": (1, max(options.max_requests, 2)),
    }
    name = type(model).__name__
    return capture_callable(step_function(model), model, inputs, ranges, results=("logits",), name=name)


def capture_model(
    model: str, *, dtype: str = "auto", max_model_len: int | None = None, max_num_seqs: int = 32
) -> tuple[Program, tuple[Pass, ...]]:
    """The step of a model folder (its config.json is enough) as vLLM would serve it, and the passes that belong to it.

    dtype: "auto", "bfloat16", "float16" or "float32". No weight is read. Raises FxhloError, or what vLLM says of a bad config.
    """
    from .compat import engine_config
    from .model import build_model

    config = engine_config(model, dtype=dtype, max_model_len=max_model_len, max_num_seqs=max_num_seqs)
    program = capture_step(config, build_model(config, weights=False))
    return program, step_passes(StepOptions.of(config))


def step_passes(options: StepOptions) -> tuple[Pass, ...]:
    """The order of the step's passes, a reason per line."""
    return (
        Canonicalize(),  # what says nothing goes before anything looks for patterns
        Expand(ir_ops()),  # vLLM's IR ops become ATen, so that later passes and rules see only one vocabulary
        PagedAttention(options.block_size, options.pages),  # attention gets its cache as explicit state
        SelectRows(),  # before products are fused: it moves over plain row-wise ops
        # logits never leave the device
        Sample(options.logprobs, options.bias, options.max_model_len, options.logprobs_mode),
        SiluAndMul(),  # before the products beside it, which it leaves alone
        Linear(),  # after the selection, which changes the products' operands
        Donate(),  # when all states have their results
        Canonicalize(),  # what the passes left behind
    )


def ir_ops() -> dict[Any, Any]:
    """vLLM's IR ops with the implementation in plain torch that each of them carries, or with a kernel of ours."""
    from .compat import ir_implementations

    table = ir_implementations()
    norms: dict[str, Callable[..., Any]] = {"rms_norm": _rms_norm, "fused_add_rms_norm": _fused_add_rms_norm}
    return {op: partial(norms[name], plain) if (name := _name(op)) in norms else plain for op, plain in table.items()}


def _name(op: Any) -> str:
    return op.overloadpacket.__name__


def _rms_norm(plain: Any, x: Any, weight: Any, epsilon: float, variance_size: int | None = None) -> Any:
    if not _same(x, weight, variance_size):
        return plain(x, weight, epsilon, variance_size)
    return torch.ops.fxhlo.rms_norm(x, weight, epsilon)


def _fused_add_rms_norm(
    plain: Any, x: Any, x_residual: Any, weight: Any, epsilon: float, variance_size: int | None = None
) -> Any:
    if not _same(x, weight, variance_size):
        return plain(x, x_residual, weight, epsilon, variance_size)
    exact = x.to(torch.float32) + x_residual.to(torch.float32)
    return torch.ops.fxhlo.rms_norm(exact, weight, epsilon), exact.to(x.dtype)


def _same(x: Any, weight: Any, variance_size: int | None) -> bool:
    """Whether the kernel's norm, over whole rows and in the weight's dtype, is the one that is asked for."""
    return weight is not None and variance_size is None and x.dtype == weight.dtype
