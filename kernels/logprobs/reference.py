"""Reference of `fxhlo.logprobs` in eager torch: vLLM's `logprobs_mode="raw_logprobs"`, with a fixed order of ties.

vllm/v1/sample/sampler.py, `compute_logprobs` and `gather_logprobs`. Order and rank are those of the logits; vLLM
uses their log-softmax, which differs only if rounding makes different logits equal. NaN is treated as
-infinity for order and rank; the values of a row that contains NaN, or only -infinity, are NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..process_logits.reference import masked

SMALLEST_NORMAL = torch.finfo(torch.float32).tiny  # compiled code flushes smaller numbers to zero, so both do


def logprobs(
    logits: Tensor, tokens: Tensor, enabled: Tensor, allowed_mask: Tensor | None = None, *, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(ids int32 [R, count + 1], values float32 [R, count + 1], rank int32 [R]).

    logits bfloat16, float16 or float32 [R, V] (raw); tokens int32 [R], the sampled ones, in [0, V); enabled int32 []: if 0,
    results are zeros; allowed_mask int32 [R, ceil(V / 32)], bit v % 32 of word v // 32 set if a grammar allows token v:
    other logits are -infinity, since vLLM applies the mask before its sampler. The first column is the sampled token, the
    others are the `count` tokens of highest logit, ties in order of id. The rank is the number of tokens whose logit is at
    least the sampled token's: 1 is the best.
    """
    x = logits.to(torch.float32)
    if allowed_mask is not None:
        x = masked(x, allowed_mask)
    order = torch.where(torch.isnan(x), float("-inf"), x)
    order = torch.where(order.abs() < SMALLEST_NORMAL, 0.0, order)
    chosen = tokens.unsqueeze(1).to(torch.int64)
    top = torch.sort(order, dim=1, descending=True, stable=True).indices[:, :count]
    ids = torch.cat([chosen, top], dim=1)
    best = order.amax(dim=1, keepdim=True)
    values = (torch.gather(x, 1, ids) - best) - torch.log(torch.exp(x - best).sum(dim=1, keepdim=True))
    rank = (order >= torch.gather(order, 1, chosen)).sum(dim=1)
    on = enabled != 0
    return (
        torch.where(on, ids, 0).to(torch.int32),
        torch.where(on, values, 0.0),
        torch.where(on, rank, 0).to(torch.int32),
    )


def check(logits: Tensor, tokens: Tensor, enabled: Tensor, allowed_mask: Tensor | None = None, *, count: int) -> None:
    """Raises IndexError where a chosen token is not in the vocabulary."""
    outside = (tokens < 0) | (tokens >= logits.shape[1])
    if enabled != 0 and outside.any():
        row = int(outside.nonzero()[0])
        raise IndexError(f"logprobs: row {row}: token {int(tokens[row])} is not in a vocabulary of {logits.shape[1]}")


def fake(
    logits: Tensor, tokens: Tensor, enabled: Tensor, allowed_mask: Tensor | None = None, *, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (logits.shape[0], count + 1)
    return (
        logits.new_empty(shape, dtype=torch.int32),
        logits.new_empty(shape, dtype=torch.float32),
        logits.new_empty(shape[:1], dtype=torch.int32),
    )
