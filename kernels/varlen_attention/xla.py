"""`fxhlo.varlen_attention` in plain StableHLO, for every target: tiles of rows, each with an online softmax (Milakov and Gimelshein
2018) over the blocks of keys between the first and the last that any of its rows attends to.

Memory is that of a tile's scores with one block, and time depends on the lengths of the sequences, not on the batch's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import Precision

from ..spec import Operands

TILE, BLOCK = 128, 128
"""Rows of a tile, and keys of a block."""
Carry = tuple[Array, Array, Array]
"""State of the online softmax: running maximum, sum of exponentials, unnormalized output."""


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    heads, kv_heads = operands[0].shape[1], operands[1].shape[1]
    return f"{heads} query heads are no multiple of {kv_heads} KV heads" if heads % kv_heads else None


def lower(
    query: Array, key: Array, value: Array, query_start_loc: Array, sinks: Array | None = None, *, scale: float,
    sliding_window: int, soft_cap: float, causal: bool,
) -> Array:  # fmt: skip
    """Operands and result as in reference.py."""
    (tokens, heads, size), kv_heads = query.shape, key.shape[1]
    wide = jnp.promote_types(query.dtype, jnp.float32)
    tiles, blocks = -(-tokens // TILE), -(-tokens // BLOCK)
    at = jnp.arange(tiles * TILE)
    starts, ends = query_start_loc[:-1], query_start_loc[1:]
    request = jnp.minimum((at[:, None] >= ends[None, :]).sum(axis=1), ends.shape[0] - 1)
    alive = at < ends[-1]
    first, end = jnp.where(alive, starts[request], 0), jnp.where(alive, ends[request], 0)
    if sliding_window > 0:
        first, end = jnp.maximum(first, at - sliding_window + 1), jnp.minimum(end, at + sliding_window)
    if causal:
        end = jnp.minimum(end, at + 1)
    live = alive[:tokens, None, None]
    keys, values = (_padded(one.astype(wide), blocks * BLOCK) for one in (key, value))
    rows = _padded(query.astype(wide), tiles * TILE).reshape(tiles, TILE, kv_heads, heads // kv_heads, size)

    def tile(rows: Array, first: Array, end: Array) -> Array:
        def block(number: Array, carry: Carry) -> Carry:
            highest, total, output = carry
            start = number * BLOCK
            some, their = (jax.lax.dynamic_slice_in_dim(one, start, BLOCK) for one in (keys, values))
            scores = jnp.einsum("nhgd,khd->hgnk", rows, some, precision=Precision.HIGHEST) * scale
            if soft_cap > 0:
                scores = soft_cap * jnp.tanh(scores / soft_cap)
            at_key = start + jnp.arange(BLOCK)
            seen = (first[:, None] <= at_key[None, :]) & (at_key[None, :] < end[:, None])
            scores = jnp.where(seen, scores, -jnp.inf)
            top = jnp.maximum(highest, scores.max(axis=-1))
            base = jnp.where(top == -jnp.inf, 0.0, top)
            powers = jnp.exp(scores - base[..., None])
            shrink = jnp.exp(highest - base)
            added = jax.lax.cond(jnp.isfinite(their).all(), _weighted, _weighted_apart, powers, their, seen)
            return top, total * shrink + powers.sum(axis=-1), output * shrink[..., None] + added

        shape = (kv_heads, heads // kv_heads, TILE)
        if sinks is None or not sinks.size:
            highest, total = jnp.full(shape, -jnp.inf, wide), jnp.zeros(shape, wide)
        else:
            highest = jnp.broadcast_to(sinks.astype(wide).reshape(kv_heads, -1, 1), shape)
            total = jnp.ones(shape, wide)
        lowest = jnp.min(jnp.where(end > first, first, tokens)) // BLOCK
        last = (jnp.max(end) + BLOCK - 1) // BLOCK
        _, total, output = jax.lax.fori_loop(lowest, last, block, (highest, total, jnp.zeros((*shape, size), wide)))
        return (output / jnp.where(total == 0.0, 1.0, total)[..., None]).transpose(2, 0, 1, 3)

    output = jax.lax.map(lambda one: tile(*one), (rows, first.reshape(tiles, TILE), end.reshape(tiles, TILE)))
    output = output.reshape(tiles * TILE, heads, size)[:tokens]
    return jnp.where(live, output, 0.0).astype(query.dtype)


def _weighted(powers: Array, values: Array, seen: Array) -> Array:
    """powers [Hkv, G, N, K], values [K, Hkv, D] -> [Hkv, G, N, D]. All values are finite."""
    return jnp.einsum("hgnk,khd->hgnd", powers, values, precision=Precision.HIGHEST)


def _weighted_apart(powers: Array, values: Array, seen: Array) -> Array:
    """The same for any values: 0 * infinity is NaN, and what a row does not see must not reach it. seen [N, K]."""
    finite = jnp.isfinite(values)
    reached = jnp.einsum("nk,khd->hnd", seen.astype(jnp.float32), (~finite).astype(jnp.float32)) > 0
    return jnp.where(reached[:, None], jnp.nan, _weighted(powers, jnp.where(finite, values, 0), seen))


def _padded(array: Array, rows: int) -> Array:
    return jnp.pad(array, ((0, rows - array.shape[0]), (0, 0), (0, 0)))
