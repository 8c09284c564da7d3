"""Reference of `fxhlo.process_logits` in eager torch: masks, bias and penalties, in the order and by the formulas of vLLM's sampler.

vllm/v1/sample/sampler.py: float32; then the masks (grammar, allowed token ids, bad words, min tokens: all set
-infinity, so that they are passed as one mask); then logit bias; then repetition, frequency and presence penalties
(vllm/model_executor/layers/utils.py, `apply_repetition_penalties_torch` of vllm/_custom_ops.py).
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked(logits: Tensor, allowed_mask: Tensor) -> Tensor:
    """Sets logits [R, V] to -infinity where the bit in allowed_mask, int32 [R, ceil(V / 32)], is 0."""
    rows, size = logits.shape
    shifts = torch.arange(32, dtype=torch.int32, device=logits.device)
    allowed = ((allowed_mask.unsqueeze(2) >> shifts) & 1).reshape(rows, 32 * allowed_mask.shape[1])[:, :size]
    return torch.where(allowed != 0, logits, float("-inf"))


def _columns(padded: Tensor, ids: Tensor) -> Tensor:
    """int64 columns of [R, V + 1]: ids outside [0, V) (-1: unused) map to the last column."""
    size = padded.shape[1] - 1
    return torch.where((ids < 0) | (ids >= size), size, ids).to(torch.int64)


def _biased(padded: Tensor, ids: Tensor, values: Tensor) -> Tensor:
    return padded.scatter_add(1, _columns(padded, ids), values)


def _penalized(
    padded: Tensor, ids: Tensor, counts: Tensor, repetition: Tensor, frequency: Tensor, presence: Tensor
) -> Tensor:
    index = _columns(padded, ids)
    x = torch.gather(padded, 1, index)
    x = x * torch.where(x > 0, 1.0 / repetition, repetition)
    x = x - frequency * counts.to(torch.float32)
    x = x - torch.where(counts > 0, presence, 0.0)
    return padded.scatter(1, index, x)


def process_logits(
    logits: Tensor,
    flags: Tensor,
    allowed_mask: Tensor,
    bias_ids: Tensor,
    bias_values: Tensor,
    seen_ids: Tensor,
    seen_counts: Tensor,
    repetition_penalty: Tensor,
    frequency_penalty: Tensor,
    presence_penalty: Tensor,
) -> Tensor:
    """The logits to sample from: float32 [R, V].

    logits bfloat16, float16 or float32 [R, V]; flags int32 [3]: whether any row has a mask, a bias, penalties (a stage
    whose flag is 0 is skipped, and its operands are ignored); allowed_mask int32 [R, ceil(V / 32)], bit v % 32 of word
    v // 32 set if token v is allowed (xgrammar's bitmask); bias_ids int32 [R, B], distinct per row, -1 (or any id
    outside [0, V)) for unused entries;
    bias_values float32 [R, B]; seen_ids int32 [R, A], the distinct tokens of prompt and output, -1 if unused; seen_counts
    int32 [R, A], their numbers of occurrences in the output (0: only in the prompt); the penalties float32 [R], neutral at
    1, 0, 0.
    """
    x = logits.to(torch.float32)
    x = torch.where(flags[0] != 0, masked(x, allowed_mask), x)
    x = torch.nn.functional.pad(x, (0, 1))
    x = torch.where(flags[1] != 0, _biased(x, bias_ids, bias_values), x)
    penalties = (p.unsqueeze(1) for p in (repetition_penalty, frequency_penalty, presence_penalty))
    x = torch.where(flags[2] != 0, _penalized(x, seen_ids, seen_counts, *penalties), x)
    return x[:, :-1].contiguous()


def fake(logits: Tensor, *_: Tensor) -> Tensor:
    return torch.empty_like(logits, dtype=torch.float32)
