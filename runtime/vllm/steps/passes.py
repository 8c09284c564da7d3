"""The passes that make a captured vLLM model a step: their order, and what vLLM's IR ops become."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ....passes.base import Pass
from ....passes.fx.canonicalize import Canonicalize
from ....passes.fx.donate import Donate
from ....passes.fx.expand import Expand
from ....passes.fx.linear import Linear
from ....passes.fx.paged_attention import PagedAttention
from ....passes.fx.sample import Sample
from ....passes.fx.select_rows import SelectRows
from ....passes.fx.silu_and_mul import SiluAndMul
from .options import StepOptions


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
    from ..compat import ir_implementations

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
