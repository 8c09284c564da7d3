"""Reference of `fxhlo.ragged_gated_delta_rule` in eager torch."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..ragged_causal_conv1d.reference import Batch, batch_of, begun, check_batch, ended, per_row, traffic
from ..ragged_selective_scan.reference import behind, last
from ..spec import Operands

EPSILON = 1e-6
"""Added to the squared length of a query or a key that is normalized."""


def ragged_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor,
    state_slots: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    *,
    scale: float,
    l2norm: bool,
) -> tuple[Tensor, Tensor]:
    """Linear attention whose state corrects what it holds for a key (Gated DeltaNet, Kimi Delta Attention), along each request's rows.

    q, k [T, Hk, K], each head for H / Hk value heads; v [T, H, V]; g [T, H], or [T, H, K] for a decay of its own for each channel of a
    key: the decay's logarithm, at most 0; beta [T, H]; state [slots, H, V, K]; state_slots, seq_lens and query_start_loc as in
    `ragged_causal_conv1d`. l2norm: queries and keys are divided by their length. All in float32:

        state = state exp(g)        state = state + beta (v - state k) k'       output = scale * state q

    Returns the output [T, H, V] in the dtype of v, zero in rows that belong to no request, and the updated state.
    """
    groups, size = v.shape[1] // k.shape[1], k.shape[2]
    batch = batch_of(v.shape[0], state, state_slots, seq_lens, query_start_loc)
    queries, keys = (_unit(one.float()) if l2norm else one.float() for one in (q, k))
    queries, keys = (one.repeat_interleave(groups, dim=1) for one in (queries, keys))
    decay = torch.exp(g.float()) if g.ndim == 3 else torch.exp(g.float())[:, :, None]
    rate = beta.float()[:, :, None]
    same = torch.eye(size, device=v.device)
    transition = decay[:, :, :, None] * (same - (rate * keys)[:, :, :, None] * keys[:, :, None, :])  # [T, H, K, K]
    update = (rate * v.float())[:, :, :, None] * keys[:, :, None, :]  # [T, H, V, K]
    states, final = _scan(transition, update, begun(state, batch), batch)
    output = torch.einsum("thvk,thk->thv", states, queries) * scale
    return per_row(batch.alive, output).to(v.dtype), ended(state, batch, final)


def _unit(values: Tensor) -> Tensor:
    return values * torch.rsqrt((values * values).sum(dim=-1, keepdim=True) + EPSILON)


def _scan(transition: Tensor, update: Tensor, before: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """`ragged_selective_scan.reference.scan` with a matrix for the decay: states[t] = states[t - 1] @ transition[t] + update[t]."""
    transition, update = per_row(batch.alive, transition), per_row(batch.alive, update)
    first = per_row(batch.alive & (batch.position == 0), before[batch.request])
    states, tokens, distance = update + first @ transition, update.shape[0], 1
    while distance < tokens:
        reach = batch.position >= distance
        states = states + per_row(reach, behind(states, distance) @ transition)
        transition = behind(transition, distance) @ transition
        distance *= 2
    return states, last(states, before, batch)


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor,
    state_slots: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    **_: object,
) -> None:
    check_batch("ragged_gated_delta_rule", v.shape[0], state, state_slots, seq_lens, query_start_loc)


def fake(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, *_: object, **__: object
) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), state.new_empty(state.shape)


def work(operands: Operands, attributes: Mapping[str, Any]) -> tuple[float, float]:
    """Least (flops, bytes) of any implementation: a row decays its request's state, reads it for its key, updates it and reads it again."""
    state, tokens = operands.named["state"], operands.named["v"].shape[0]
    return 7.0 * tokens * prod(state.shape[1:]), traffic(operands)
