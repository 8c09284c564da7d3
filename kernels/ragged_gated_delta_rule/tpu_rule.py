"""The gated delta rule over a tile of rows in Pallas for TPU: `xla._tile`, a block of heads at a time.

Each stage is done for all heads of the block before the next, so that products of one head fill the time in which those of another wait.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from ..ragged_ssd.tpu_tiles import between, product, running

PART = 16
"""Rows of a part of a tile, within which decays by channel are elementwise."""
Heads = list[Array]
"""An array for each head of the block."""


def corrected(
    states: Heads, queries: Heads, keys: Heads, values: Heads, decay: Array, beta: Array
) -> tuple[Heads, Heads]:
    """A `Rule` of ragged_ssd/tpu_tiles.py, with a decay and a rate [C, heads]."""
    sums, width, heads = running(decay), decay.shape[0], range(len(states))
    both = {id(one): jnp.concatenate([one, other]) for one, other in zip(keys, queries, strict=True)}
    squares = {of: product(pair, pair[:width], (1, 1)) for of, pair in both.items()}  # once for heads that share a key
    totals = [sums[:, head : head + 1] for head in heads]
    decays = [between(total) for total in totals]
    below = [squares[id(keys[head])][:width] * decays[head] for head in heads]
    seen = [squares[id(keys[head])][width:] * decays[head] for head in heads]
    held = [product(both[id(keys[head])], states[head], (1, 1)) for head in heads]
    until = [jnp.exp(total) for total in totals]
    held = [one * jnp.concatenate([decay, decay]) for one, decay in zip(held, until, strict=True)]
    left = [key * jnp.exp(total[-1:] - total) for key, total in zip(keys, totals, strict=True)]
    return _after(states, values, beta, below, seen, held, left, [one[-1:] for one in until])


def corrected_by_channel(
    states: Heads, queries: Heads, keys: Heads, values: Heads, decays: Heads, beta: Array
) -> tuple[Heads, Heads]:
    """As `corrected`, with a decay [C, K] of each head."""
    totals = [running(decay) for decay in decays]
    both = list(zip(keys, queries, totals, strict=True))
    below, seen = zip(*(_between(*one) for one in both), strict=True)
    until = [jnp.exp(total) for total in totals]
    rows = [
        jnp.concatenate([key * decay, query * decay]) for key, query, decay in zip(keys, queries, until, strict=True)
    ]
    held = [product(row, state, (1, 1)) for row, state in zip(rows, states, strict=True)]
    left = [key * jnp.exp(total[-1:] - total) for key, total in zip(keys, totals, strict=True)]
    return _after(states, values, beta, list(below), list(seen), held, left, [one[-1:] for one in until])


def _between(keys: Array, queries: Array, total: Array) -> tuple[Array, Array]:
    """Products [C, C] of the rows' keys and queries with the keys up to them, decayed by channel. total [C, K].

    From another part of the tile a decay is the product of those to and from the row in front of the part, each at most one; within a
    part it is made for each pair of rows.
    """
    width, size = keys.shape
    row = lax.broadcasted_iota(jnp.int32, (width, size), 0)
    lane, at = (lax.broadcasted_iota(jnp.int32, (PART, width), axis) for axis in (1, 0))
    made: tuple[Heads, Heads] = [], []
    for first in range(0, width, PART):
        here = slice(first, first + PART)
        bound = total[first - 1 : first] if first else jnp.zeros((1, size), jnp.float32)
        before = keys * jnp.exp(jnp.where(row < first, bound - total, -jnp.inf))
        decay = jnp.exp(total[here] - bound)
        both = jnp.concatenate([keys[here] * decay, queries[here] * decay])
        found = product(both, before, (1, 1))
        parts = [found[:PART], found[PART:]]
        for one in range(PART):
            other = first + one
            key = keys[other : other + 1] * jnp.exp(jnp.minimum(total[here] - total[other : other + 1], 0.0))
            for index, rows in enumerate((keys, queries)):
                column = jnp.sum(rows[here] * key, axis=1, keepdims=True)
                parts[index] = parts[index] + jnp.where((lane == other) & (at >= one), column, 0.0)
        for part, into in zip(parts, made, strict=True):
            into.append(part)
    return jnp.concatenate(made[0]), jnp.concatenate(made[1])


def _after(
    states: Heads, values: Heads, beta: Array, below: Heads, seen: Heads, held: Heads, left: Heads, ends: Heads
) -> tuple[Heads, Heads]:
    """Outputs and states after a tile. below, seen [C, C]: decayed products of the rows' keys and queries with the keys up to them; held
    [2 C, V]: what the state holds for the keys, then for the queries, decayed; left [C, K]: keys decayed to the end; ends [1, 1 or K]."""
    width, heads = beta.shape[0], range(len(states))
    rates = [beta[:, head : head + 1] for head in heads]
    wanted = [rates[head] * (values[head] - held[head][:width]) for head in heads]
    inverses = inverse([one * rate for one, rate in zip(below, rates, strict=True)])
    corrections = [product(inverses[head], wanted[head], (1, 0)) for head in heads]
    outputs = [held[head][width:] + product(seen[head], corrections[head], (1, 0)) for head in heads]
    after = [states[head] * ends[head] + product(corrections[head], left[head], (0, 0)) for head in heads]
    return outputs, after


def inverse(below: list[Array]) -> list[Array]:
    """(I + the strictly lower triangle of each)^-1, as `xla.inverse`."""
    width = below[0].shape[0]
    at, of = (lax.broadcasted_iota(jnp.int32, (width, width), axis) for axis in (0, 1))
    made = [jnp.where(at == of, 1.0, 0.0)] * len(below)
    half = 1
    while half < width:
        block, other = at // half, of // half
        joined = (block == other + 1) & (other % 2 == 0)
        corners = [jnp.where(joined, one, 0.0) for one in below]
        if half > 1:
            inner = [product(one, corner, (1, 0)) for one, corner in zip(made, corners, strict=True)]
            corners = [product(one, done, (1, 0)) for one, done in zip(inner, made, strict=True)]
        made = [one - corner for one, corner in zip(made, corners, strict=True)]
        half *= 2
    return made
