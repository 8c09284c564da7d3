"""Reference of `fxhlo.ragged_causal_conv1d` in eager torch, and how every kernel with a state per request reads a step's batch."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..spec import Operands


class Batch(NamedTuple):
    """The rows of a step and the requests that they belong to.

    request int64 [T]: of a row (the last one for padding rows). position int64 [T]: the row's index within its request's rows.
    alive bool [T]: not padding. starts, rows int64 [R]: a request's first row, and their number. slots int64 [R]: of its state.
    fresh bool [R]: none of its tokens came before this step, so its state begins at zero.
    """

    request: Tensor
    position: Tensor
    alive: Tensor
    starts: Tensor
    rows: Tensor
    slots: Tensor
    fresh: Tensor


def batch_of(tokens: int, state: Tensor, state_slots: Tensor, seq_lens: Tensor, query_start_loc: Tensor) -> Batch:
    """The batch of a step of `tokens` rows; slots are clamped to those that the state has."""
    at = torch.arange(tokens, device=query_start_loc.device)
    starts, ends = query_start_loc[:-1].long(), query_start_loc[1:].long()
    request = (at[:, None] >= ends[None, :]).sum(dim=1).clamp(max=starts.shape[0] - 1)
    rows = ends - starts
    return Batch(
        request=request,
        position=at - starts[request],
        alive=at < ends[-1],
        starts=starts,
        rows=rows,
        slots=state_slots.long().clamp(0, state.shape[0] - 1),
        fresh=seq_lens.long() == rows,
    )


def begun(state: Tensor, batch: Batch) -> Tensor:
    """The state [R, ...] in float32 that each request begins the step with; the slot of a fresh one may hold anything, even NaN."""
    return torch.where(_as(batch.fresh, state), 0.0, state[batch.slots].float())


def ended(state: Tensor, batch: Batch, final: Tensor) -> Tensor:
    """The state with the final [R, ...] of each request that has rows; those without write what is there to the scratch slot 0."""
    has_rows = batch.rows > 0
    new = torch.where(_as(has_rows, final), final.to(state.dtype), state[:1])
    return state.index_put((torch.where(has_rows, batch.slots, 0),), new)


def per_row(mask: Tensor, values: Tensor) -> Tensor:
    """Values [T, ...], zero in rows that are not in the mask [T]."""
    return torch.where(_as(mask, values), values, 0.0)


def _as(mask: Tensor, values: Tensor) -> Tensor:
    return mask.reshape(-1, *[1] * (values.ndim - 1))


def ragged_causal_conv1d(
    values: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    state_slots: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    *,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """A depthwise convolution along each request's rows, which continues from the rows of earlier steps.

    values [T, C]; weight [C, K], its last column for the row itself; bias [C] or None; state [slots, K - 1, C], the last K - 1 rows
    of a request before this step, the newest last; state_slots int32 [R]: the slot of each request; seq_lens int32 [R], its tokens
    including this step's: where there were none before, the state is taken as zero; query_start_loc int32 [R + 1]: its first row.

    Returns the convolution [T, C] in float32, `silu`: times its logistic, rounded to the values' dtype, zero in rows that belong
    to no request; and the updated state. A request without rows changes no state.
    """
    kept = weight.shape[1] - 1
    batch = batch_of(values.shape[0], state, state_slots, seq_lens, query_start_loc)
    before, rows = begun(state, batch), per_row(batch.alive, values.float())
    at = torch.arange(values.shape[0], device=values.device)
    total = rows * weight[:, kept].float()
    for back in range(1, kept + 1):
        inside = batch.position >= back
        earlier = before[batch.request, (kept - back + batch.position).clamp(0, kept - 1)]
        tap = torch.where(inside[:, None], rows[(at - back).clamp(min=0)], earlier)
        total = total + tap * weight[:, kept - back].float()
    if bias is not None:
        total = total + bias.float()
    total = functional.silu(total) if silu else total
    output = per_row(batch.alive, total).to(values.dtype)
    if not kept:
        return output, state.clone()
    place = batch.rows[:, None] - kept + torch.arange(kept, device=values.device)  # [R, kept], below 0: of the state
    new = rows[(batch.starts[:, None] + place).clamp(0, values.shape[0] - 1)]
    old = torch.gather(before, 1, (place + kept).clamp(0, kept - 1)[:, :, None].expand_as(before))
    return output, ended(state, batch, torch.where((place >= 0)[:, :, None], new, old))


def check_batch(
    name: str, tokens: int, state: Tensor, state_slots: Tensor, seq_lens: Tensor, query_start_loc: Tensor
) -> None:
    """Raises IndexError if a request has rows outside the batch, or a state outside the slots."""
    starts, slots, slot_count = query_start_loc.tolist(), state_slots.tolist(), state.shape[0]
    if starts and starts[0] != 0:
        raise IndexError(f"{name}: query_start_loc begins at {starts[0]}, not at 0")
    for request, (begin, end, slot, length) in enumerate(
        zip(starts, starts[1:], slots, seq_lens.tolist(), strict=False)
    ):
        where = f"{name}: request {request}"
        if not 0 <= begin <= end <= tokens:
            raise IndexError(f"{where}: rows {begin} to {end} of query_start_loc are not in a batch of {tokens}")
        if begin == end:
            continue
        if not 0 <= slot < slot_count:
            raise IndexError(f"{where}: its state is in slot {slot}, the state has {slot_count} slots")
        if length < end - begin:
            raise IndexError(f"{where}: seq_lens is {length}, this step alone has {end - begin} rows of it")


def check(
    values: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    state_slots: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    **_: object,
) -> None:
    check_batch("ragged_causal_conv1d", values.shape[0], state, state_slots, seq_lens, query_start_loc)


def fake(
    values: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, *_: object, **__: object
) -> tuple[Tensor, Tensor]:
    return values.new_empty(values.shape), state.new_empty(state.shape)


def traffic(operands: Operands) -> float:
    """Least bytes of a kernel with a state per request: its other operands once, the output, and the state of each request both ways."""
    named = dict(operands.named)
    state, requests = named.pop("state"), operands.named["state_slots"].shape[0]
    rows = next(iter(operands))
    moved = [prod(spec.shape) * spec.dtype.itemsize for spec in named.values()]
    per_slot = prod(state.shape[1:]) * state.dtype.itemsize
    return sum(moved) + prod(rows.shape) * rows.dtype.itemsize + 2.0 * min(requests, rows.shape[0]) * per_slot


def work(operands: Operands, attributes: Mapping[str, Any]) -> tuple[float, float]:
    """Least (flops, bytes) of any implementation: each row has K products a channel."""
    tokens, channels = operands.named["values"].shape
    return 2.0 * tokens * channels * operands.named["weight"].shape[1], traffic(operands)
