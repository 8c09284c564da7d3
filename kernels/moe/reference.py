"""Reference of `fxhlo.moe` in eager torch, and its activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..spec import Operands

GATED = ("silu", "gelu", "gelu_tanh", "relu2", "swigluoai", "swiglustep", "situ")
"""Activations of a gate and an up projection: w13 has twice as many rows as w2 has columns."""
PLAIN: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu_no_mul": functional.silu,
    "gelu_no_mul": functional.gelu,
    "gelu_tanh_no_mul": partial(functional.gelu, approximate="tanh"),
    "relu2_no_mul": lambda values: functional.relu(values).square(),
}
"""Activations of a single projection."""


def moe(
    x: Tensor,
    w13: Tensor,
    w2: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    w13_bias: Tensor | None = None,
    w2_bias: Tensor | None = None,
    *,
    activation: str,
    limit: float,
    alpha: float,
    beta: float,
    weight_on_input: bool,
) -> Tensor:
    """x [T, H], w13 [E, 2 I, H] (or [E, I, H] for an activation of one projection), w2 [E, H, I], biases [E, 2 I] and [E, H], of one
    floating dtype; topk_weights float32 [T, k]; topk_ids int32 [T, k] -> [T, H] in x's dtype.

    Row t is the sum over j of topk_weights[t, j] * (act(x[t] @ w13[e].T + w13_bias[e]) @ w2[e].T + w2_bias[e]), e = topk_ids[t, j]; an id outside
    0..E-1 contributes nothing. The ids of a row within that range are distinct. weight_on_input: the weight multiplies x[t],
    rounded to its dtype, and not the result. activation, limit, alpha, beta: as in `activated`.
    Products and activation are float32; the activation's result is rounded to x's dtype, and so is the sum.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    experts = torch.arange(w13.shape[0], dtype=topk_ids.dtype, device=x.device)
    chosen = topk_ids.unsqueeze(-1) == experts  # [T, k, E]
    weights = torch.where(chosen, topk_weights.unsqueeze(-1), 0.0).sum(1).t().unsqueeze(-1)  # [E, T, 1]
    rows = x.unsqueeze(0)
    if weight_on_input:
        rows = (rows.to(wide) * weights.to(wide)).to(x.dtype)
    hidden = torch.matmul(rows.to(wide), w13.to(wide).transpose(1, 2))
    if w13_bias is not None:
        hidden = hidden + w13_bias.to(wide).unsqueeze(1)
    inner = activated(hidden, activation, limit, alpha, beta).to(x.dtype)
    result = torch.matmul(inner.to(wide), w2.to(wide).transpose(1, 2))
    if w2_bias is not None:
        result = result + w2_bias.to(wide).unsqueeze(1)
    if not weight_on_input:
        result = result * weights.to(wide)
    return torch.where(chosen.any(1).t().unsqueeze(-1), result, 0.0).sum(0).to(x.dtype)


def activated(hidden: Tensor, activation: str, limit: float, alpha: float, beta: float) -> Tensor:
    """hidden [..., 2 I] -> [..., I], or [..., I] -> [..., I] for an activation of one projection (PLAIN).

    The gate is the first half and up the second; "swigluoai" has them interleaved, gate first. By activation:
    silu, swigluoai: gate * sigmoid(alpha * gate) * (up + beta), with gate at most limit, and up within -limit..limit.
    swiglustep: silu(gate) at most limit, times up within -limit..limit.
    situ: alpha * tanh(gate / alpha) * sigmoid(gate) * (beta * tanh(up / beta), or up where beta is 0).
    gelu, gelu_tanh, relu2: of the gate, times up. A limit of 0 is none; an activation without limit, alpha or beta above ignores them.
    """
    if activation in PLAIN:
        return PLAIN[activation](hidden)
    size = hidden.shape[-1] // 2
    gate, up = hidden[..., :size], hidden[..., size:]
    if activation in ("silu", "swigluoai"):
        if activation == "swigluoai":
            gate, up = hidden[..., 0::2], hidden[..., 1::2]
        if limit > 0:
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return gate * torch.sigmoid(alpha * gate) * (up + beta)
    if activation == "swiglustep":
        gate = functional.silu(gate)
        return gate.clamp(max=limit) * up.clamp(-limit, limit) if limit > 0 else gate * up
    if activation == "situ":
        gate = alpha * torch.tanh(gate / alpha) * torch.sigmoid(gate)
        return gate * (beta * torch.tanh(up / beta) if beta > 0 else up)
    if activation == "relu2":
        return functional.relu(gate).square() * up
    if activation not in ("gelu", "gelu_tanh"):
        raise ValueError(f"{activation} is no activation of experts: {', '.join((*GATED, *PLAIN))}")
    return functional.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none") * up


def fake(
    x: Tensor, w13: Tensor, w2: Tensor, topk_weights: Tensor, topk_ids: Tensor, *_: object, **__: object
) -> Tensor:
    return x.new_empty((x.shape[0], w2.shape[1]))


def work(operands: Operands, attributes: Mapping[str, Any]) -> tuple[float, float]:
    """The least flops, and the bytes of the rows and of as many experts' weights as the rows can choose."""
    named = operands.named
    x, w13, w2, ids = (named[name] for name in ("x", "w13", "w2", "topk_ids"))
    pairs = ids.shape[0] * ids.shape[1]
    sizes = {name: float(_bytes(named[name])) for name in named}
    weights = sum(sizes[name] for name in ("w13", "w2", "w13_bias", "w2_bias") if name in sizes)
    read = weights * min(pairs, w13.shape[0]) / max(w13.shape[0], 1)
    rows = 2 * x.shape[0] * x.shape[1] * x.dtype.itemsize + sizes["topk_weights"] + sizes["topk_ids"]
    return 2.0 * pairs * (w13.shape[1] * w13.shape[2] + w2.shape[1] * w2.shape[2]), read + rows


def _bytes(spec: Any) -> int:
    size = spec.dtype.itemsize
    for extent in spec.shape:
        size *= extent
    return int(size)
