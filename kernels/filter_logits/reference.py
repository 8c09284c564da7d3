"""Reference of `fxhlo.filter_logits` in eager torch: what vLLM returns for logprobs_mode "processed_logits".

It keeps the same tokens as `fxhlo.sample`, by the same arithmetic (kernels/sample/reference.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..sample.reference import EPSILON, cleaned, distance, kept, scaled


def filter_logits(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, enabled: Tensor
) -> Tensor:
    """float32 [R, V]: logits / temperature, or -infinity for tokens that min-p, top-k or top-p drop.

    logits float32 or bfloat16 [R, V] (processed); temperature, top_k, top_p, min_p [R] as in `fxhlo.sample`: a row whose
    temperature is below 1e-5 is greedy and returned unchanged; enabled int32 []: if 0, the result is zeros.
    """
    temperature, top_k, top_p, min_p = (x.unsqueeze(1) for x in (temperature, top_k, top_p, min_p))
    x = cleaned(logits)
    random = temperature >= EPSILON
    divisor = torch.where(random, temperature, 1.0)
    y = scaled(x, divisor)
    left = torch.where(kept(y, distance(y), top_k, top_p, min_p), x / divisor, float("-inf"))
    return torch.where(enabled != 0, torch.where(random, left, x), 0.0)


def fake(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, enabled: Tensor) -> Tensor:
    return torch.empty_like(logits, dtype=torch.float32)
