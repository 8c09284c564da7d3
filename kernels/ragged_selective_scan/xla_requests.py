"""Runs a recurrence along the rows of each request: one row of each in a batch, or tiles of one request's rows in a loop.

Comes in: rows in the order of their requests, and how the recurrence goes over one row of many requests, and over a tile of rows of one.
Goes out: the outputs of the rows, and the state with each request's new one. Requests of any lengths share a step.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

Rows = tuple[Array, ...]
Recurrence = Callable[..., tuple[Array, Array]]
"""(states before, *rows) -> (outputs, states after), all float32. Rows of zeros must leave a state as it is."""
Carry = tuple[Array, Array]


def along_requests(
    single: Recurrence, tile: Recurrence, width: int, rows: Rows,
    state: Array, state_slots: Array, seq_lens: Array, query_start_loc: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """Outputs float32 [T, ...], zero in rows of no request, and the updated state.

    rows: arrays [T, ...]. single: takes states [R, ...] and rows [R, ...], one a request. tile: takes a state [...] and rows
    [width, ...] of one request, zeros behind its last. state, state_slots, seq_lens and query_start_loc as in the references.
    """
    tokens = rows[0].shape[0]
    bounds = jnp.clip(query_start_loc, 0, tokens)
    starts, ends = bounds[:-1], bounds[1:]
    has_rows = ends > starts
    slots = jnp.clip(state_slots, 0, state.shape[0] - 1)
    at = jnp.arange(tokens)
    alive = at < ends[-1]
    rows = tuple(_where(alive, one, 0.0) for one in rows)
    before = _where(seq_lens == ends - starts, 0.0, state[slots].astype(jnp.float32))

    def each_has_one() -> Carry:
        place = jnp.minimum(starts, tokens - 1)
        output, after = single(before, *(one[place] for one in rows))
        request = jnp.minimum((at[:, None] >= ends[None, :]).sum(axis=1), ends.shape[0] - 1)
        return output[request], _where(has_rows, after, before)

    def some_have_more() -> Carry:
        return _by_tiles(tile, width, rows, before, starts, ends)

    if tokens == 1:
        output, after = each_has_one()
    else:
        output, after = jax.lax.cond(jnp.max(ends - starts) <= 1, each_has_one, some_have_more)
    state = state.at[jnp.where(has_rows, slots, 0)].set(after.astype(state.dtype))
    return _where(alive, output, 0.0), state


def _by_tiles(tile: Recurrence, width: int, rows: Rows, states: Array, starts: Array, ends: Array) -> Carry:
    """Loops over requests, and over tiles of `width` of their rows. A tile's outputs behind its request's last row are written over by
    the next request's."""
    tokens = rows[0].shape[0]
    padded = tuple(jnp.pad(one, ((0, width), *[(0, 0)] * (one.ndim - 1))) for one in rows)
    shape = jax.eval_shape(tile, states[0], *(one[:width] for one in padded))[0].shape

    def one_request(request: Array, carry: Carry) -> Carry:
        output, states = carry
        start, end = starts[request], ends[request]

        def one_tile(number: Array, carry: Carry) -> Carry:
            output, state = carry
            first = start + number * width
            inside = first + jnp.arange(width) < end
            given = (jax.lax.dynamic_slice_in_dim(one, first, width) for one in padded)
            made, state = tile(state, *(_where(inside, one, 0.0) for one in given))
            return jax.lax.dynamic_update_slice_in_dim(output, made, first, axis=0), state

        count = (end - start + width - 1) // width
        output, state = jax.lax.fori_loop(0, count, one_tile, (output, states[request]))
        return output, states.at[request].set(state)

    output = jnp.zeros((tokens + width, *shape[1:]), jnp.float32)
    output, states = jax.lax.fori_loop(0, jnp.sum(starts < ends[-1]), one_request, (output, states))
    return output[:tokens], states


def _where(mask: Array, values: Array | float, other: Array | float) -> Array:
    """`jnp.where` with a mask [N] of values [N, ...]."""
    rank = max(jnp.ndim(values), jnp.ndim(other))
    return jnp.where(mask.reshape(-1, *[1] * (rank - 1)), values, other)


def alone(rows: Array, *shape: int) -> tuple[Array, Array, Array, Array]:
    """State float32 [1, *shape], state_slots, seq_lens and query_start_loc of one request that has all rows [T, ...]."""
    bounds = jnp.array([0, rows.shape[0]], jnp.int32)
    return jnp.zeros((1, *shape), jnp.float32), bounds[:1], bounds[1:], bounds
