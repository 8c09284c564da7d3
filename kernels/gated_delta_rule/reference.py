"""Reference of `fxhlo.gated_delta_rule` in eager torch."""

from __future__ import annotations

from torch import Tensor

from ..causal_conv1d.reference import alone
from ..ragged_gated_delta_rule.reference import ragged_gated_delta_rule


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, *, layer: str, scale: float, l2norm: bool
) -> Tensor:
    """q, k [T, Hk, K], v [T, H, V], g [T, H] or [T, H, K], beta [T, H] -> [T, H, V]: `ragged_gated_delta_rule` of one sequence."""
    step = alone(v, *v.shape[1:], k.shape[2])
    return ragged_gated_delta_rule(q, k, v, g, beta, *step, scale=scale, l2norm=l2norm)[0]


def fake(q: Tensor, k: Tensor, v: Tensor, *_: object, **__: object) -> Tensor:
    return v.new_empty(v.shape)
