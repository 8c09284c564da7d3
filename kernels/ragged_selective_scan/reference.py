"""Reference of `fxhlo.ragged_selective_scan` in eager torch, and the scan of a recurrence whose decay is elementwise."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..ragged_causal_conv1d.reference import Batch, batch_of, begun, check_batch, ended, per_row, traffic
from ..spec import Operands


def scan(decay: Tensor, update: Tensor, before: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """states[t] = decay[t] * states[t - 1] + update[t] along each request's rows, in log2(T) steps (Hillis and Steele 1986).

    decay [T, ...] broadcasts with update [T, ...]; before [R, ...]: the states in front of the requests' first rows. Returns the
    states [T, ...], zero in padding rows, and those after each request's last row [R, ...].
    """
    decay, update = per_row(batch.alive, decay), per_row(batch.alive, update)
    first = per_row(batch.alive & (batch.position == 0), before[batch.request])
    states, tokens, distance = update + decay * first, update.shape[0], 1
    while distance < tokens:
        reach = batch.position >= distance  # so that no request sees another's, be it NaN
        states = states + per_row(reach, decay * behind(states, distance))
        decay = decay * behind(decay, distance)
        distance *= 2
    return states, last(states, before, batch)


def behind(values: Tensor, distance: int) -> Tensor:
    """Values [T, ...] moved down by `distance` rows; zeros come in at the top."""
    return torch.cat([torch.zeros_like(values[:distance]), values[:-distance]])


def last(states: Tensor, before: Tensor, batch: Batch) -> Tensor:
    """The states [R, ...] after each request's last row; of one without rows, `before`."""
    ends = (batch.starts + batch.rows - 1).clamp(0, states.shape[0] - 1)
    has_rows = (batch.rows > 0).reshape(-1, *[1] * (states.ndim - 1))
    return torch.where(has_rows, states[ends], before)


def ragged_selective_scan(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    dt_bias: Tensor | None,
    state: Tensor,
    state_slots: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
) -> tuple[Tensor, Tensor]:
    """The selective state space of Mamba along each request's rows, from the state that an earlier step left.

    x, dt [T, D]; a [D, N], negative; b, c [T, N]; d [D]; dt_bias [D] or None; state [slots, D, N]; state_slots, seq_lens and
    query_start_loc as in `ragged_causal_conv1d`. With s = softplus(dt + dt_bias), all in float32:

        state = exp(s a) state + (s x) b        y = state c + d x

    Returns y [T, D] in the dtype of x, zero in rows that belong to no request, and the updated state.
    """
    batch = batch_of(x.shape[0], state, state_slots, seq_lens, query_start_loc)
    step = softened(dt, dt_bias)
    decay = torch.exp(step[:, :, None] * a.float())
    update = (step * x.float())[:, :, None] * b.float()[:, None, :]
    states, final = scan(decay, update, begun(state, batch), batch)
    y = torch.einsum("tdn,tn->td", states, c.float()) + d.float() * x.float()
    return per_row(batch.alive, y).to(x.dtype), ended(state, batch, final)


def softened(dt: Tensor, dt_bias: Tensor | None) -> Tensor:
    """softplus(dt + dt_bias) in float32."""
    return functional.softplus(dt.float() if dt_bias is None else dt.float() + dt_bias.float())


def check(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    dt_bias: Tensor | None,
    state: Tensor,
    state_slots: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
) -> None:
    check_batch("ragged_selective_scan", x.shape[0], state, state_slots, seq_lens, query_start_loc)


def fake(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, dt_bias: Tensor | None, state: Tensor, *_: object
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), state.new_empty(state.shape)


def work(operands: Operands, attributes: Mapping[str, Any]) -> tuple[float, float]:
    """Least (flops, bytes) of any implementation: a row decays, updates and reads its request's state."""
    state, tokens = operands.named["state"], operands.named["x"].shape[0]
    return 6.0 * tokens * prod(state.shape[1:]), traffic(operands)
