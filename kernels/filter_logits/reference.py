"""`fxhlo.filter_logits` in eager torch: what vLLM's logprobs_mode "processed_logits" shows.

The tokens that are left are those of `fxhlo.sample`: the same arithmetic decides (kernels/sample/reference.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..sample.reference import EPSILON, cleaned, distance, kept, scaled


def filter_logits(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, enabled: Tensor
) -> Tensor:
    """float32 [R, V]: logits / temperature, -infinity where min-p, top-k or top-p drop the token.

    logits float32 or bfloat16 [R, V] (processed); temperature, top_k, top_p, min_p [R] as in `fxhlo.sample`: a row whose
    temperature is below 1e-5 is greedy and stays as it is; enabled int32 []: 0 gives zeros.
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
