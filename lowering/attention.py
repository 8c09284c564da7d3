"""`aten.scaled_dot_product_attention`, taken apart so that a compiler moves as little memory as it can.

torch's own way scales queries and keys, and repeats the keys and values of grouped heads; a compiler then writes both
copies to memory. Here the rows of one group are rows of one product with its keys, the scores are scaled where they are made, and
no pass over them is spent on rows that see nothing. Measured with libtpu for v5e and v6e: `make bench BENCH="--only tpu"`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """query [..., Hq, L, E], key [..., Hk, S, E], value [..., Hk, S, Ev] -> [..., Hq, L, Ev] in the query's dtype.

    Computed in float32 or wider; a row whose keys are all masked gives zeros, as in torch. Source: the ATen schema,
    Vaswani et al. 2017 section 3.2.1, and Ainslie et al. 2023 for grouped heads.
    """
    plain = query.ndim < 3 or key.ndim != query.ndim or value.ndim != query.ndim
    if dropout_p > 0.0 or plain or query.is_nested or not query.is_floating_point():
        return NotImplemented
    heads, kv_heads = query.shape[-3], key.shape[-3]
    if heads != kv_heads and not (enable_gqa and value.shape[-3] == kv_heads and heads % kv_heads == 0):
        return NotImplemented  # torch says what is wrong with it, or broadcasts
    group, rows, keys = heads // kv_heads, query.shape[-2], key.shape[-2]
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    batch = query.shape[:-3]
    together = query.to(wide).reshape(*batch, kv_heads, group * rows, query.shape[-1])
    scores = (together @ key.to(wide).transpose(-1, -2)) * scale
    scores = scores.reshape(*batch, kv_heads, group, rows, keys)
    if is_causal:
        attn_mask = torch.ones((rows, keys), dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        mask = _by_group(attn_mask, kv_heads, group)
        scores = torch.where(mask, scores, -torch.inf) if mask.dtype == torch.bool else scores + mask.to(wide)
    weights = _softmax(scores, masked=attn_mask is not None)
    output = weights.reshape(*batch, kv_heads, group * rows, keys) @ value.to(wide)
    return output.reshape(*batch, heads, rows, value.shape[-1]).to(query.dtype)


def _softmax(scores: Tensor, *, masked: bool) -> Tensor:
    """Softmax over the keys; masked: a row that sees none gives zeros.

    As a maximum and a sum of the scores, which a compiler takes in one pass, and a function of each score, which it computes where the
    product reads it. That a row sees nothing is read off those two numbers: `_safe_softmax` looks at all scores once more.
    """
    highest = scores.amax(-1, keepdim=True)
    if masked:
        highest = torch.where(highest == -torch.inf, 0.0, highest)
    powers = torch.exp(scores - highest)
    total = powers.sum(-1, keepdim=True)
    if masked:
        total = torch.where(total == 0.0, 1.0, total)
    return powers / total


def _by_group(mask: Tensor, kv_heads: int, group: int) -> Tensor:
    """The mask with the dimension of heads as (KV heads, group); one that has no heads is the same for all."""
    if mask.ndim < 3:
        return mask
    if mask.shape[-3] == 1:
        return mask.unsqueeze(-3)
    return mask.reshape(*mask.shape[:-3], kv_heads, group, *mask.shape[-2:])
