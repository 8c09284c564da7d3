"""Runs a recurrence along the rows of each request: one row of each in a batch, or tiles of one request's rows in a loop.

Comes in: rows in the order of their requests, and how the recurrence goes over one row of many requests, and over a tile of rows of one.
Goes out: the outputs of the rows, and the state with each request's new one. Requests of any lengths share a step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

Rows = tuple[Array, ...]
Recurrence = Callable[..., tuple[Array, Array]]
"""(states before, *rows) -> (outputs, states after), all float32. Rows of zeros must leave a state as it is."""
InPlace = Callable[..., tuple[Array, Array]]
"""(state, slots, kinds, *rows) -> (outputs, state): one row of each request, with the states where they lie. Its kind is NO_ROWS, GOES_ON
or FRESH; one without rows has slot 0."""
InTiles = Callable[["Step", Array, Array, Rows], tuple[Array, Array]]
"""(step, chosen, state, rows) -> (outputs, state): all rows of the chosen requests [R], with the states where they lie; outputs of other
rows may be anything."""
NO_ROWS, GOES_ON, FRESH = 0, 1, 2
Carry = tuple[Array, Array]


class Step(NamedTuple):
    """A step's requests: their first rows and the ends of them [R], their slots, and which begin at zero."""

    starts: Array
    ends: Array
    slots: Array
    fresh: Array

    @classmethod
    def of(cls, tokens: int, state: Array, state_slots: Array, seq_lens: Array, query_start_loc: Array) -> Step:
        bounds = jnp.clip(query_start_loc, 0, tokens)
        starts, ends = bounds[:-1], bounds[1:]
        return cls(starts, ends, jnp.clip(state_slots, 0, state.shape[0] - 1), seq_lens == ends - starts)

    def request(self, tokens: int) -> Array:
        """Of each row; the last one of padding rows."""
        return jnp.minimum((jnp.arange(tokens)[:, None] >= self.ends[None, :]).sum(axis=1), self.ends.shape[0] - 1)


def along_requests(
    single: Recurrence, tile: Recurrence, width: int, rows: Rows,
    state: Array, state_slots: Array, seq_lens: Array, query_start_loc: Array, *, in_place: InPlace | None = None,
    in_tiles: InTiles | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """Outputs float32 [T, ...], zero in rows of no request, and the updated state.

    rows: arrays [T, ...]. single: takes states [R, ...] and rows [R, ...], one a request. tile: takes a state [...] and rows
    [width, ...] of one request, zeros behind its last. in_place, in_tiles: instead of `single` and of `tile`. state, state_slots, seq_lens and
    query_start_loc as in the references.
    """
    tokens = rows[0].shape[0]
    step = Step.of(tokens, state, state_slots, seq_lens, query_start_loc)
    alive = jnp.arange(tokens) < step.ends[-1]
    rows = tuple(_where(alive, one, 0.0) for one in rows)
    go = partial(_gathered, in_tiles) if in_place is None else partial(_in_place, in_place, in_tiles)
    output, state = go(single, tile, width, rows, state, step)
    return _where(alive, output, 0.0), state


def _gathered(
    in_tiles: InTiles | None,
    single: Recurrence,
    tile: Recurrence,
    width: int,
    rows: Rows,
    state: Array,
    step: Step,
) -> Carry:
    """On a copy of the requests' states: a batch of rows where no request has more than one, else tiles."""
    tokens, has_rows = rows[0].shape[0], step.ends > step.starts
    before = _where(step.fresh, 0.0, state[step.slots].astype(jnp.float32))

    def each_has_one() -> Carry:
        output, after = single(before, *(one[jnp.minimum(step.starts, tokens - 1)] for one in rows))
        return output[step.request(tokens)], _where(has_rows, after, before)

    def some_have_more() -> Carry:
        shape = jax.eval_shape(each_has_one)[0]
        copied = step._replace(slots=jnp.arange(before.shape[0]), fresh=jnp.zeros_like(step.fresh))
        if in_tiles is not None:
            return in_tiles(copied, has_rows, before, rows)
        return _by_tiles(tile, width, rows, jnp.zeros(shape.shape, shape.dtype), before, copied, has_rows)

    if tokens == 1:
        output, after = each_has_one()
    else:
        output, after = jax.lax.cond(jnp.max(step.ends - step.starts) <= 1, each_has_one, some_have_more)
    after = _where(has_rows, after.astype(state.dtype), state[:1])
    return output, state.at[jnp.where(has_rows, step.slots, 0)].set(after)


def _in_place(
    one_row: InPlace,
    in_tiles: InTiles | None,
    single: Recurrence,
    tile: Recurrence,
    width: int,
    rows: Rows,
    state: Array,
    step: Step,
) -> Carry:
    """On the states where they lie: all requests of one row, then the others by tiles. A condition would copy the state."""
    tokens, lengths = rows[0].shape[0], step.ends - step.starts
    alone = lengths == 1
    kinds = jnp.where(alone, jnp.where(step.fresh, FRESH, GOES_ON), NO_ROWS)
    given = [one[jnp.minimum(step.starts, tokens - 1)] for one in rows]
    output, state = one_row(state, jnp.where(alone, step.slots, 0), kinds, *given)
    request = step.request(tokens)
    output = output[request]
    if tokens == 1:
        return output, state
    if in_tiles is None:
        return _by_tiles(tile, width, rows, output, state, step, lengths > 1)
    made, state = in_tiles(step, lengths > 1, state, rows)
    return _where((lengths > 1)[request], made, output), state


def _by_tiles(
    tile: Recurrence, width: int, rows: Rows, output: Array, states: Array, step: Step, chosen: Array
) -> Carry:
    """Loops over the `chosen` requests [R], and over tiles of `width` of their rows; other rows keep their outputs [T, ...]."""
    tokens = rows[0].shape[0]
    padded, output = tuple(_padded(one, width) for one in rows), _padded(output, width)
    (order,) = jnp.nonzero(chosen, size=chosen.shape[0], fill_value=0)

    def one_request(index: Array, carry: Carry) -> Carry:
        output, states = carry
        request = order[index]
        start, end, slot = step.starts[request], step.ends[request], step.slots[request]

        def one_tile(number: Array, carry: Carry) -> Carry:
            output, state = carry
            first = start + number * width
            inside = first + jnp.arange(width) < end
            given = (jax.lax.dynamic_slice_in_dim(one, first, width) for one in padded)
            made, state = tile(state, *(_where(inside, one, 0.0) for one in given))
            made = _where(inside, made, jax.lax.dynamic_slice_in_dim(output, first, width))
            return jax.lax.dynamic_update_slice_in_dim(output, made, first, axis=0), state

        before = jnp.where(step.fresh[request], 0.0, states[slot].astype(jnp.float32))
        output, after = jax.lax.fori_loop(0, (end - start + width - 1) // width, one_tile, (output, before))
        return output, states.at[slot].set(after.astype(states.dtype))

    output, states = jax.lax.fori_loop(0, jnp.sum(chosen), one_request, (output, states))
    return output[:tokens], states


def _padded(rows: Array, width: int) -> Array:
    return jnp.pad(rows, ((0, width), *[(0, 0)] * (rows.ndim - 1)))


def _where(mask: Array, values: Array | float, other: Array | float) -> Array:
    """`jnp.where` with a mask [N] of values [N, ...]."""
    rank = max(jnp.ndim(values), jnp.ndim(other))
    return jnp.where(mask.reshape(-1, *[1] * (rank - 1)), values, other)


def alone(rows: Array, *shape: int) -> tuple[Array, Array, Array, Array]:
    """State float32 [1, *shape], state_slots, seq_lens and query_start_loc of one request that has all rows [T, ...]."""
    bounds = jnp.array([0, rows.shape[0]], jnp.int32)
    return jnp.zeros((1, *shape), jnp.float32), bounds[:1], bounds[1:], bounds
