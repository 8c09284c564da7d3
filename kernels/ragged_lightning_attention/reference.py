"""Reference of `fxhlo.ragged_lightning_attention` in eager torch."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..ragged_causal_conv1d.reference import batch_of, begun, check_batch, ended, per_row, traffic
from ..ragged_selective_scan.reference import scan
from ..spec import Operands


def ragged_lightning_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor,
    state: Tensor,
    state_slots: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
) -> tuple[Tensor, Tensor]:
    """Linear attention with a fixed decay a head (MiniMax), along each request's rows.

    q, k [T, H, K]; v [T, H, V]; slopes [H], not negative; state [slots, H, V, K]; state_slots, seq_lens and query_start_loc as in
    `ragged_causal_conv1d`. All in float32:

        state = exp(-slope) state + v k'        output = state q

    Returns the output [T, H, V] in the dtype of v, zero in rows that belong to no request, and the updated state. A model that scales
    its queries does so before.
    """
    batch = batch_of(v.shape[0], state, state_slots, seq_lens, query_start_loc)
    decay = torch.exp(-slopes.float())[None, :, None, None].expand(v.shape[0], -1, -1, -1)
    update = v.float()[:, :, :, None] * k.float()[:, :, None, :]
    states, final = scan(decay, update, begun(state, batch), batch)
    output = torch.einsum("thvk,thk->thv", states, q.float())
    return per_row(batch.alive, output).to(v.dtype), ended(state, batch, final)


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor,
    state: Tensor,
    state_slots: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
) -> None:
    check_batch("ragged_lightning_attention", v.shape[0], state, state_slots, seq_lens, query_start_loc)


def fake(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), state.new_empty(state.shape)


def work(operands: Operands, attributes: Mapping[str, Any]) -> tuple[float, float]:
    """Least (flops, bytes) of any implementation: a row decays, updates and reads its request's state."""
    state, tokens = operands.named["state"], operands.named["v"].shape[0]
    return 5.0 * tokens * prod(state.shape[1:]), traffic(operands)
