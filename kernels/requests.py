"""Attention of a device that has the caches of some requests (attention data parallelism): their rows come first, and the others are padding.

Each device has a run of the cache's blocks, and all blocks of a request lie in one run (runtime/vllm/states/parts.py). So a kernel that
takes a batch of requests takes a device's own batch as it is: its requests are counted from the first on, in the order that they had, the
rows and requests behind them belong to none, and blocks are numbered from the device's first one.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

ROWS = ("query", "key", "value", "latent", "selected")
"""Operands of attention with an entry for each row, [T, ...]."""


def taken(
    *, slot_mapping: Array, block_tables: Array, seq_lens: Array, query_start_loc: Array, number: Array, block_size: int, blocks: int,
    **rows: Array,
) -> tuple[Array, ...]:  # fmt: skip
    """The device's own batch: the `rows` in their order, slot_mapping, block_tables, seq_lens and query_start_loc, and int32 [T] where each
    row of the whole batch went, T where it is another device's. number: of the device, int32 []; it has `blocks` blocks."""
    tokens = slot_mapping.shape[0]
    lengths = query_start_loc[1:] - query_start_loc[:-1]
    page = jnp.maximum(seq_lens - 1, 0) // block_size  # of the newest token: a window may have left those before it
    newest = jnp.take_along_axis(block_tables, page[:, None], axis=1, mode="clip")[:, 0]
    own = (lengths > 0) & (newest // blocks == number)
    row = jnp.arange(tokens, dtype=jnp.int32)
    request = (row[:, None] >= query_start_loc[None, 1:]).sum(axis=1)
    own_rows = (row < query_start_loc[-1]) & jnp.take(own, request, mode="clip")
    to_row, to_request = _places(own_rows), _places(own)
    order = jnp.zeros(tokens, jnp.int32).at[to_row].set(row, mode="drop")
    slots = jnp.where(slot_mapping < 0, -1, slot_mapping - number * blocks * block_size)

    def first(values: Array, blank: int = 0) -> Array:
        return jnp.full_like(values, blank).at[to_request].set(values, mode="drop")

    tables = first(jnp.clip(block_tables - number * blocks, 0, blocks - 1))
    bounds = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(first(lengths), dtype=jnp.int32)])
    return (
        *(jnp.take(value, order, axis=0) for value in rows.values()),
        jnp.full_like(slots, -1).at[to_row].set(slots, mode="drop"),
        tables,
        first(seq_lens),
        bounds,
        to_row,
    )


def put_back(output: Array, places: Array) -> Array:
    """The rows where they were, zeros in those of other devices. places: as `taken` gave them."""
    return jnp.take(output, places, axis=0, mode="fill", fill_value=0)


def _places(own: Array) -> Array:
    """Where each entry goes if the own ones come first; behind all of them for the others."""
    return jnp.where(own, jnp.cumsum(own, dtype=jnp.int32) - 1, own.shape[0]).astype(jnp.int32)
