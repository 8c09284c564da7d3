"""Pairs of a tile of a batch's rows and a request with rows in it: the grid of kernels whose tiles may hold rows of several requests."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Pairs(NamedTuple):
    """Pairs in the order of rows. request, tile, begin, end int32 [pairs]: rows [begin, end) of the tile are the request's. total: how many
    there are, known at run time; at least one, which may have no rows."""

    request: Array
    tile: Array
    begin: Array
    end: Array
    total: Array

    @classmethod
    def of(cls, starts: Array, ends: Array, chosen: Array, tokens: int, size: int, least: int) -> Pairs:
        """Of the `chosen` requests, with rows [starts, ends) of `tokens`, at least `least` each, and tiles of `size` rows."""
        requests = starts.shape[0]
        chosen = chosen & (ends > starts)
        tiles = jnp.where(chosen, (ends - 1) // size - starts // size + 1, 0)
        before = jnp.cumsum(tiles)
        at = jnp.arange(-(-tokens // size) + min(requests, tokens // least + 1), dtype=jnp.int32)
        request = jnp.minimum((before[None, :] <= at[:, None]).sum(axis=1, dtype=jnp.int32), requests - 1)
        live = at < before[-1]
        first = starts[request]
        last = jnp.where(live, ends[request], first)
        tile = jnp.where(live, first // size + at - before[request] + tiles[request], 0).astype(jnp.int32)
        begin = jnp.clip(first - tile * size, 0, size)
        end = jnp.clip(last - tile * size, begin, size)
        return cls(request, tile, jnp.where(live, begin, 0), jnp.where(live, end, 0), jnp.maximum(before[-1], 1))
