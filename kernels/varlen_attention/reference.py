"""Reference of `fxhlo.varlen_attention` in eager torch: all scores of the batch, and a mask of those that count."""

from __future__ import annotations

from itertools import pairwise

import torch

from ..attention.reference import softmax


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_start_loc: torch.Tensor,
    sinks: torch.Tensor | None = None,
    *,
    scale: float,
    sliding_window: int,
    soft_cap: float,
    causal: bool,
) -> torch.Tensor:
    """query [T, Hq, D]; key, value [T, Hkv, D]; query_start_loc int32 [R + 1], the first row of each sequence -> [T, Hq, D].

    A row attends to the rows of its own sequence; causal: to itself and those before it. sliding_window: only to rows less than
    `sliding_window` away, on both sides (0: no window). soft_cap: scores become cap * tanh(scores / cap) (0: no cap). sinks [Hq]: a logit
    per head that is added to the softmax's denominator only. Rows that belong to no sequence are zero. A value that is no number reaches
    the rows that attend to it, as some value that is no number, and no others.
    """
    tokens, heads, _ = query.shape
    groups = heads // key.shape[1]
    at = torch.arange(tokens, device=query.device)
    request = (at[:, None] >= query_start_loc[None, 1:]).sum(dim=1)
    apart = at[:, None] - at[None, :]
    seen = (request[:, None] == request[None, :]) & (at < query_start_loc[-1])[:, None]
    if causal:
        seen = seen & (apart >= 0)
    if sliding_window > 0:
        seen = seen & (apart.abs() < sliding_window)
    keys, values = (one.float().repeat_interleave(groups, dim=1) for one in (key, value))
    scores = torch.einsum("ihd,jhd->hij", query.float(), keys) * scale
    weights = softmax(scores, seen, -apart.abs(), sinks, None, soft_cap)
    finite = torch.isfinite(values)  # 0 * infinity is NaN: what a row does not see must not reach it
    output = torch.einsum("hij,jhd->ihd", weights, torch.where(finite, values, 0.0))
    reached = torch.einsum("ij,jhd->ihd", seen.float(), (~finite).float()) > 0
    alive = (at < query_start_loc[-1])[:, None, None]
    return torch.where(alive, torch.where(reached, float("nan"), output), 0.0).to(query.dtype)


def check(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_start_loc: torch.Tensor,
    *_: torch.Tensor | None,
    **__: object,
) -> None:
    """Raises IndexError if a sequence has rows outside the batch."""
    starts = query_start_loc.tolist()
    if starts and starts[0] != 0:
        raise IndexError(f"varlen_attention: query_start_loc begins at {starts[0]}, not at 0")
    for request, (begin, end) in enumerate(pairwise(starts)):
        if not 0 <= begin <= end <= query.shape[0]:
            raise IndexError(
                f"varlen_attention: request {request}: rows {begin} to {end} of query_start_loc are not in a batch of {query.shape[0]}"
            )


def fake(query: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    return query.new_empty(query.shape)
