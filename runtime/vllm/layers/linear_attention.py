"""vLLM's linear attention with a fixed decay a head (lightning attention, as in Bailing V2.5): the recurrence as a functional op."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ....passes.fx.recurrent_state import RECURRENCE
from ...core.sharding import Split
from .kind import Devices, LayerKind, Replacement, replaced_in
from .recurrent import by_heads, classes, inlined, states_of

BAILING = "vllm.model_executor.layers.mamba.linear.bailing_linear_attn"
MINIMAX = "vllm.model_executor.layers.mamba.linear.minimax_linear_attn"
NORMS = "vllm.third_party.flash_linear_attention.ops.layernorm_guard"


def bailing_forward(layer: Any, hidden_states: Tensor, output: Tensor, positions: Tensor) -> None:
    """hidden_states [T, C] -> output [T, C], written; in place of BailingMoELinearAttention._forward."""
    qkv = layer.query_key_value(hidden_states)[0].float()
    qkv = functional.silu(qkv) if layer.linear_silu else qkv
    q, k, v = qkv.split([layer.q_size_per_rank, layer.kv_size_per_rank, layer.kv_size_per_rank], dim=-1)
    if layer.use_qk_norm:
        q, k = (
            norm(part.unflatten(-1, (-1, layer.head_dim)), by.weight, layer.rms_norm_eps).flatten(1)
            for part, by in ((q, layer.query_layernorm), (k, layer.key_layernorm))
        )
    if layer.linear_rope:
        q, k = layer.rotary_emb(positions, q, k)
    q, k, v = (part.unflatten(-1, (-1, layer.head_dim)) for part in (q, k, v))
    attended = lightning(layer, q * layer.scaling if layer.linear_scale else q, k, v)
    gate, _ = layer.g_proj(hidden_states)
    gated = (
        layer.g_norm(attended, gate) if layer.group_norm_size > 1 else functional.sigmoid(gate) * layer.g_norm(attended)
    )
    output.copy_(layer.dense(gated.to(hidden_states.dtype))[0])


def minimax_forward(layer: Any, hidden_states: Tensor, output: Tensor, positions: Tensor) -> None:
    """hidden_states [T, C] -> output [T, C], written; in place of MiniMaxText01LinearAttention._forward."""
    qkv = functional.silu(layer.qkv_proj(hidden_states)[0].float())
    parts = qkv.unflatten(-1, (layer.tp_heads, -1)).split([layer.head_dim] * 3, dim=-1)
    gate = functional.sigmoid(layer.output_gate(hidden_states)[0])
    attended = gate * layer.norm._forward(lightning(layer, *parts))
    output.copy_(layer.out_proj(attended.to(hidden_states.dtype))[0])


def lightning(layer: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q, k and v [T, H, D] -> [T, H * D]."""
    slopes = layer.tp_slope.reshape(-1)
    return torch.ops.fxhlo.lightning_attention(q, k, v, slopes, layer=layer.prefix).flatten(1)


def norm(values: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """The RMS norm of the last dimension, in float32."""
    exact = values.float()
    exact = exact * torch.rsqrt(exact.square().mean(dim=-1, keepdim=True) + epsilon)
    return (exact * weight.float()).to(values.dtype)


def rmsnorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    activation: str = "swish",
) -> Tensor:
    """The RMS norm of groups of the last dimension with a gate z behind or before it; in place of vLLM's Triton kernel."""
    gate = None if z is None else (torch.sigmoid if activation == "sigmoid" else functional.silu)(z.float())
    exact = x.float() if gate is None or norm_before_gate else x.float() * gate
    groups = exact.unflatten(-1, (-1, group_size or x.shape[-1]))
    scaled = norm(groups, torch.ones(()), eps).flatten(-2) * weight.float()
    scaled = scaled if bias is None else scaled + bias.float()
    return (scaled * gate if gate is not None and norm_before_gate else scaled).to(x.dtype)


def replacements() -> Iterable[Replacement]:
    yield from inlined(MINIMAX, "linear_attention")
    yield from replaced_in(MINIMAX, {"MiniMaxText01LinearAttention._forward": minimax_forward})
    yield from replaced_in(BAILING, {"BailingMoELinearAttention._forward": bailing_forward})
    yield from replaced_in(NORMS, {"rmsnorm_fn": rmsnorm_fn})


def splits(layer: Any, devices: Devices) -> Mapping[str, Split]:
    return by_heads(devices, 4)


CLASSES = (f"{BAILING}:BailingMoELinearAttention", f"{MINIMAX}:MiniMaxText01LinearAttention")
KIND = LayerKind("linear attention", classes(CLASSES), states_of(RECURRENCE), replacements, splits)
