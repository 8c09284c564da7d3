"""`fxhlo.ragged_ssd` on TPU: single rows by one Pallas kernel, tiles of rows by another; both update the states where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from ...runtime.core.targets import Target
from ..ragged_selective_scan.xla_requests import InTiles, Rows, Step
from ..spec import Operands
from . import xla
from .tpu_step import refused, step
from .tpu_tiles import along_tiles, between, product, running, shared_by

WIDTH = 128
"""Rows of a tile."""


def supports(operands: Operands, attributes: Mapping[str, Any], target: Target) -> str | None:
    return xla.supports(operands, attributes) or refused(operands.named["state"], target)


def decayed(
    state: Array, slots: Array, kinds: Array, queries: Array, keys: Array, values: Array, decay: Array
) -> tuple[Array, Array]:
    """`along_requests`' in_place for the rows of `decayed_attention`."""
    shape = (*values.shape[:2], keys.shape[2])
    queries, keys = (jnp.repeat(one, shape[1] // one.shape[1], axis=1) for one in (queries, keys))
    return step(state, slots, kinds, queries, keys, values, jnp.broadcast_to(jnp.exp(decay)[..., None], shape), None)


def tiles_of(heads: int, groups: int) -> InTiles | None:
    """`along_requests`' in_tiles for the rows of `decayed_attention`; None where a block of heads has parts of groups."""
    return None if shared_by(heads, groups) is None else _tiles


def _tiles(step: Step, chosen: Array, state: Array, rows: Rows) -> tuple[Array, Array]:
    queries, keys, values, decay = rows
    return along_tiles(_decayed, WIDTH, queries, keys, (values,), (decay,), state, step, chosen)


def _decayed(
    states: list[Array], queries: list[Array], keys: list[Array], values: list[Array], decay: Array
) -> tuple[list[Array], list[Array]]:
    """A `Rule`: as `xla._tile`."""
    sums, heads = running(decay), range(len(states))
    seen = {id(one): product(one, other, (1, 1)) for one, other in zip(queries, keys, strict=True)}  # once for a group
    totals = [sums[:, head : head + 1] for head in heads]
    ends = [total[-1:] for total in totals]
    inside = [product(seen[id(queries[head])] * between(totals[head]), values[head], (1, 0)) for head in heads]
    before = [product(queries[head], states[head], (1, 1)) * jnp.exp(totals[head]) for head in heads]
    left = [values[head] * jnp.exp(ends[head] - totals[head]) for head in heads]
    after = [states[head] * jnp.exp(ends[head]) + product(left[head], keys[head], (0, 0)) for head in heads]
    return [one + other for one, other in zip(inside, before, strict=True)], after


def lower(
    x: Array, dt: Array, a: Array, b: Array, c: Array, d: Array, dt_bias: Array, state: Array, state_slots: Array,
    seq_lens: Array, query_start_loc: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """Operands and results as in reference.py."""
    tiles = tiles_of(x.shape[1], b.shape[1])
    given = (x, dt, a, b, c, d, dt_bias, state, state_slots, seq_lens, query_start_loc)
    return xla.lower(*given, in_place=decayed, in_tiles=tiles)
