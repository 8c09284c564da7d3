"""The passes that turn a captured vLLM model into a step, in order, and the expansions of vLLM's IR ops."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ....passes.base import Pass
from ....passes.fx.canonicalize import Canonicalize
from ....passes.fx.donate import Donate
from ....passes.fx.expand import Expand, Function, Preferred
from ....passes.fx.feed import Feed
from ....passes.fx.latent_attention import LatentAttention
from ....passes.fx.linear import Linear
from ....passes.fx.pack_inputs import PackInputs
from ....passes.fx.paged_attention import PagedAttention
from ....passes.fx.recurrent_state import RecurrentState
from ....passes.fx.sample import Sample
from ....passes.fx.select_rows import SelectRows
from ....passes.fx.silu_and_mul import SiluAndMul
from ....passes.fx.unused_rows import UnusedRows
from ....passes.fx.varlen_attention import VarlenAttention
from ....passes.step_inputs import MODEL, TOKEN_TYPES, TOKENS, StepInput
from ....passes.torch_private import OpOverload
from .options import StepOptions


def step_passes(options: StepOptions) -> tuple[Pass, ...]:
    """Returns the step's passes in order, a reason per line."""
    sampling = (
        SelectRows(),  # before matmuls become `fxhlo.linear`: it moves over plain row-wise ops
        # sampling is part of the step: logits never leave the device
        Sample(options.logprobs, options.bias, options.max_model_len, options.logprobs_mode),
        Feed(options.max_requests if options.feed else 0),  # the tokens that are sampled now are the next step's
    )
    passes = (
        Canonicalize(),  # removes no-ops, common subexpressions and dead code before pattern matching
        Expand(ir_ops()),  # decomposes vLLM's IR ops to ATen, so that later passes and rules see one op set
        PagedAttention(
            options.block_size, options.pages, groups=options.groups
        ),  # makes attention's KV cache an explicit state
        LatentAttention(options.block_size, options.pages),  # the same for caches of latents
        RecurrentState(_dtypes(options)),  # and the states of layers that keep one per request
        VarlenAttention(),  # gives bidirectional attention, which has no cache, the requests' bounds
        *(() if options.pooling else sampling),  # a pooling model's step returns hidden states
        SiluAndMul(),  # before the matmuls beside it, which it leaves alone
        Linear(),  # after the selection, which changes the matmuls' operands
        UnusedRows(
            options.skips
        ),  # after the selection and when all products are there: it is about rows of all tokens
        Donate(),  # when all states have their results
    )
    return (
        *passes,
        PackInputs(options.packed, step_table(options, passes)),  # when all inputs are there
        Canonicalize(),  # cleans up after the passes
    )


def step_table(options: StepOptions, passes: Iterable[Pass]) -> tuple[StepInput, ...]:
    """Every input that the step may have: the model's, and those that each pass adds."""
    model = (*TOKENS, *TOKEN_TYPES) if options.pooling else MODEL
    return (*model, *(one for each in passes for one in each.inputs))


def _dtypes(options: StepOptions) -> tuple[tuple[str, torch.dtype], ...]:
    return tuple((name, getattr(torch, dtype)) for name, dtype in options.state_dtypes)


def ir_ops() -> dict[OpOverload, Function | Preferred]:
    """Maps vLLM's IR ops to their implementations in plain torch, or to an op of ours."""
    from ..compat import ir_implementations

    fused: dict[str, tuple[Function, Callable[..., str | None]]] = {
        "rms_norm": (_rms_norm, lambda x, weight, epsilon, size=None: _obstacle(x, weight, size)),
        "fused_add_rms_norm": (
            _fused_add_rms_norm,
            lambda x, residual, weight, epsilon, size=None: _obstacle(x, weight, size),
        ),
    }
    return {
        op: Preferred(*fused[name], plain) if (name := op.overloadpacket.__name__) in fused else plain
        for op, plain in ir_implementations().items()
    }


def _rms_norm(x: Tensor, weight: Tensor, epsilon: float, variance_size: int | None = None) -> Tensor:
    return torch.ops.fxhlo.rms_norm(x, weight, epsilon)


def _fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    exact = x.to(torch.float32) + x_residual.to(torch.float32)
    return torch.ops.fxhlo.rms_norm(exact, weight, epsilon), exact.to(x.dtype)


def _obstacle(x: Tensor, weight: Tensor | None, variance_size: int | None) -> str | None:
    """Why this norm is not the kernel's, which is over whole rows and in the weight's dtype; None where it is."""
    if weight is None:
        return "the norm has no weight"
    if variance_size is not None:
        return f"the norm is over {variance_size} of a row's elements"
    return None if x.dtype == weight.dtype else f"the norm's input is {x.dtype} and its weight {weight.dtype}"
