"""Reference of `fxhlo.attention` in eager torch, and the masked softmax that all attention references share."""

from __future__ import annotations

import torch


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    *,
    layer: str,
    scale: float,
    sliding_window: int,
    soft_cap: float,
    causal: bool = True,
    chunk: int = 0,
) -> torch.Tensor:
    """query [T, Hq, D], key and value [S, Hkv, D], each from position 0 on -> [T, Hq, D].

    causal: a token attends to keys up to its own position (S is T); otherwise to all keys. sliding_window: only to keys less than
    `sliding_window` positions away, itself included (0: no window). chunk: only to keys of the same `chunk` positions, counted
    from 0 (0: no chunks). soft_cap: scores become cap * tanh(scores / cap) (0: no cap).
    sinks [Hq]: a logit per head that is added to the softmax's denominator only. alibi_slopes [Hq]: slope times the distance of
    the positions is subtracted from the scores.
    """
    tokens, heads, _ = query.shape
    groups = heads // key.shape[1]
    keys = key.float().repeat_interleave(groups, dim=1)
    values = value.float().repeat_interleave(groups, dim=1)
    scores = torch.einsum("ihd,jhd->hij", query.float(), keys) * scale
    at = torch.arange(tokens, device=query.device)[:, None]
    key_at = torch.arange(key.shape[0], device=query.device)[None, :]
    apart = (at - key_at).abs()
    if causal:
        seen = visible(at, key_at, sliding_window, chunk)
    else:
        seen = apart < (sliding_window if sliding_window > 0 else tokens + key.shape[0])
        seen = seen & (key_at >= at - at % chunk) & (key_at < at - at % chunk + chunk) if chunk > 0 else seen
    weights = softmax(scores, seen, -apart, sinks, alibi_slopes, soft_cap)
    return torch.einsum("hij,jhd->ihd", weights, values).to(query.dtype)


def visible(query_at: torch.Tensor, key_at: torch.Tensor, sliding_window: int, chunk: int = 0) -> torch.Tensor:
    """Mask of the keys that a query attends to: those up to its own position, within the window and its chunk."""
    seen = key_at <= query_at
    seen = seen & (query_at - key_at < sliding_window) if sliding_window > 0 else seen
    return seen & (key_at >= query_at - query_at % chunk) if chunk > 0 else seen


def softmax(
    scores: torch.Tensor,
    seen: torch.Tensor,
    distance: torch.Tensor,
    sinks: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    soft_cap: float,
) -> torch.Tensor:
    """Softmax of float32 scores [Hq, ..., keys] over the keys in the mask `seen`; zero in fully masked rows."""
    per_head = (-1,) + (1,) * (scores.ndim - 1)
    if soft_cap > 0:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    if alibi_slopes is not None and alibi_slopes.numel():
        scores = scores + alibi_slopes.float().reshape(per_head) * distance
    scores = torch.where(seen, scores, float("-inf"))
    highest = scores.amax(dim=-1, keepdim=True)
    sink = None
    if sinks is not None and sinks.numel():
        sink = sinks.float().reshape(per_head)
        highest = torch.maximum(highest, sink)
    highest = torch.where(torch.isfinite(highest), highest, 0.0)
    powers = torch.exp(scores - highest)
    total = powers.sum(dim=-1, keepdim=True)
    if sink is not None:
        total = total + torch.exp(sink - highest)
    return powers / torch.where(total > 0, total, 1.0)


def fake(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    **_: object,
) -> torch.Tensor:
    return query.new_empty(query.shape)
