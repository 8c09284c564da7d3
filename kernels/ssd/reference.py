"""Reference of `fxhlo.ssd` in eager torch."""

from __future__ import annotations

from torch import Tensor

from ..causal_conv1d.reference import alone
from ..ragged_ssd.reference import ragged_ssd


def ssd(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, dt_bias: Tensor, *, layer: str) -> Tensor:
    """x [T, H, P], dt [T, H], a, d, dt_bias [H], b, c [T, G, N] -> [T, H, P]: `ragged_ssd` of one sequence."""
    return ragged_ssd(x, dt, a, b, c, d, dt_bias, *alone(x, *x.shape[1:], b.shape[2]))[0]


def fake(x: Tensor, *_: object, **__: object) -> Tensor:
    return x.new_empty(x.shape)
