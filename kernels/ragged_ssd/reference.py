"""Reference of `fxhlo.ragged_ssd` in eager torch."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..ragged_causal_conv1d.reference import batch_of, begun, check_batch, ended, per_row, traffic
from ..ragged_selective_scan.reference import scan, softened
from ..spec import Operands


def ragged_ssd(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    dt_bias: Tensor,
    state: Tensor,
    state_slots: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
) -> tuple[Tensor, Tensor]:
    """The state space of Mamba 2, whose decay is one number a head, along each request's rows.

    x [T, H, P]; dt [T, H]; a [H], negative; b, c [T, G, N], each group for H / G heads; d, dt_bias [H]; state [slots, H, P, N];
    state_slots, seq_lens and query_start_loc as in `ragged_causal_conv1d`. With s = softplus(dt + dt_bias), all in float32:

        state = exp(s a) state + (s x) b'       y = state c + d x

    Returns y [T, H, P] in the dtype of x, zero in rows that belong to no request, and the updated state.
    """
    groups = x.shape[1] // b.shape[1]
    batch = batch_of(x.shape[0], state, state_slots, seq_lens, query_start_loc)
    step = softened(dt, dt_bias)
    keys, queries = (one.float().repeat_interleave(groups, dim=1) for one in (b, c))
    decay = torch.exp(step * a.float())[:, :, None, None]
    update = (step[:, :, None] * x.float())[:, :, :, None] * keys[:, :, None, :]
    states, final = scan(decay, update, begun(state, batch), batch)
    y = torch.einsum("thpn,thn->thp", states, queries) + d.float()[:, None] * x.float()
    return per_row(batch.alive, y).to(x.dtype), ended(state, batch, final)


def check(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    dt_bias: Tensor,
    state: Tensor,
    state_slots: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
) -> None:
    check_batch("ragged_ssd", x.shape[0], state, state_slots, seq_lens, query_start_loc)


def fake(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, dt_bias: Tensor, state: Tensor, *_: object
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), state.new_empty(state.shape)


def work(operands: Operands, attributes: Mapping[str, Any]) -> tuple[float, float]:
    """Least (flops, bytes) of any implementation: a row decays, updates and reads its request's state."""
    state, tokens = operands.named["state"], operands.named["x"].shape[0]
    return 5.0 * tokens * prod(state.shape[1:]), traffic(operands)
