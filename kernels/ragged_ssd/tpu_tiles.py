"""Tiles of rows in Pallas for TPU: a request's state stays in VMEM while the kernel goes over the rows of the request.

A tile of the batch's rows may hold rows of several requests; the grid goes over blocks of heads and over pairs of a tile and a request
(paged_attention/tpu_pairs.py), in which the rows of others are zero. A rule says what a tile does to the states of a block of heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..paged_attention.tpu_pairs import Pairs
from ..ragged_selective_scan.xla_requests import Step
from .tpu_step import block_of

Rule = Callable[..., tuple[list[Array], list[Array]]]
"""(states: of each head [V, K], queries and keys: of each head [C, K], owns: lists of each head's [C, ...], the first of values [C, V],
numbers: arrays [C, heads]) -> outputs [C, V] and states of each head; rows of zeros must leave a state as it is."""


def shared_by(heads: int, groups: int) -> int | None:
    """Heads of queries and keys in a block of heads; None where a block would have a part of a group and one of another."""
    block, each = block_of(heads), heads // groups
    if block % each == 0:
        return block // each
    return 1 if each % block == 0 else None


def along_tiles(
    rule: Rule, width: int, queries: Array, keys: Array, owns: Sequence[Array], numbers: Sequence[Array], state: Array, step: Step,
    chosen: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """Outputs float32 [T, H, V] of the rows of the `chosen` requests [R], others may be anything, and the state, updated in place.

    queries, keys [T, G, K]; owns: arrays [T, H, ...], the first of them values [T, H, V]; numbers: arrays [T, H]; state float32
    [slots, H, V, K]. The rule gets all as float32.
    """
    (tokens, groups, size), (_, heads, value) = keys.shape, owns[0].shape
    block, shared = block_of(heads), shared_by(heads, groups)
    assert shared is not None
    pairs = Pairs.of(step.starts, step.ends, chosen, tokens, width, 2)
    live = pairs.end > pairs.begin
    slots = jnp.where(live, step.slots[pairs.request], 0)
    first = pairs.tile * width + pairs.begin == step.starts[pairs.request]
    kinds = jnp.where(first & live, jnp.where(step.fresh[pairs.request], FRESH, FIRST), jnp.where(live, GOES_ON, FIRST))

    def of_state(head: Any, pair: Any, slots: Any, *_: Any) -> tuple[Any, Any, int, int]:
        return slots[pair], head, 0, 0

    def of_group(head: Any, pair: Any, slots: Any, kinds: Any, tile: Any, *_: Any) -> tuple[Any, Any, int]:
        return head * block * groups // heads // shared, tile[pair], 0

    def of_head(head: Any, pair: Any, slots: Any, kinds: Any, tile: Any, *_: Any) -> tuple[Any, Any, int]:
        return head, tile[pair], 0

    columns = [jnp.moveaxis(one.reshape(tokens, heads // block, block), 1, 0) for one in numbers]
    place = pl.BlockSpec((1, block, value, size), of_state)
    row = pl.BlockSpec((shared, width, size), of_group)
    own = [pl.BlockSpec((block, width, one.shape[2]), of_head) for one in owns]
    output, updated = pl.pallas_call(
        partial(_kernel, rule=rule, owns=len(owns)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=5,
            grid=(heads // block, pairs.total),
            in_specs=[place, row, row, *own, *[pl.BlockSpec((1, width, block), of_head)] * len(columns)],
            out_specs=[own[0], place],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((heads, tokens, value), jnp.float32),
            jax.ShapeDtypeStruct(state.shape, jnp.float32),
        ],
        input_output_aliases={5: 1},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM),
        name="tiles_of_rows",
    )(
        slots, kinds, pairs.tile, pairs.begin, pairs.end, state, *(jnp.swapaxes(one, 0, 1) for one in (queries, keys, *owns)), *columns,
    )  # fmt: skip
    return jnp.swapaxes(output, 0, 1), updated


GOES_ON, FIRST, FRESH = 0, 1, 2
"""Of a pair: whether the state is that of the pair before it, or read from its slot, or zero."""
VMEM = 12 * 2**20
"""Bytes that the kernel may need; a block of heads takes some 3 MiB."""


def _kernel(
    slots: Any,
    kinds: Any,
    tile: Any,
    begin: Any,
    end: Any,
    state: Any,
    queries: Any,
    keys: Any,
    *rest: Any,
    rule: Rule,
    owns: int,
) -> None:
    values, columns, (output, updated) = rest[:owns], rest[owns:-2], rest[-2:]
    pair = pl.program_id(1)
    block, width, value = output.shape
    kind = kinds[pair]

    @pl.when(kind != GOES_ON)
    def _() -> None:
        updated[...] = jnp.where(kind == FRESH, 0.0, state[...])

    def inside(shape: tuple[int, int]) -> Array:
        row = lax.broadcasted_iota(jnp.int32, shape, 0)
        return (row >= begin[pair]) & (row < end[pair])

    def rows(refs: Any) -> list[Array]:
        mask = inside(refs.shape[1:])
        made = [jnp.where(mask, refs[at].astype(jnp.float32), 0.0) for at in range(refs.shape[0])]
        return [made[head * len(made) // block] for head in range(block)]

    mask = inside((width, block))
    numbers = [jnp.where(mask, column[0].astype(jnp.float32), 0.0) for column in columns]
    outputs, states = rule(
        [updated[0, head] for head in range(block)], rows(queries), rows(keys), *map(rows, values), *numbers
    )
    mine = inside((width, value))
    for head in range(block):
        output[head] = jnp.where(mine, outputs[head], output[head])
        updated[0, head] = states[head]


def product(one: Array, other: Array, axes: tuple[int, int]) -> Array:
    """Matrices multiplied along an axis of each, in full float32."""
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(one, other, dimensions, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def running(decay: Array) -> Array:
    """Sums [C, heads] of the decays' logarithms up to each row, itself included."""
    width = decay.shape[0]
    at, of = (lax.broadcasted_iota(jnp.int32, (width, width), axis) for axis in (0, 1))
    return product(jnp.where(of <= at, 1.0, 0.0), decay, (1, 0))


def between(total: Array) -> Array:
    """Decays [C, C] from row j to row i of sums [C, 1], zero where j is later."""
    width = total.shape[0]
    at, of = (lax.broadcasted_iota(jnp.int32, (width, width), axis) for axis in (0, 1))
    across = jnp.sum(
        jnp.where(at == of, total, 0.0), axis=0, keepdims=True
    )  # a column of sublanes becomes a row of lanes
    return jnp.exp(jnp.where(of <= at, total - across, -jnp.inf))
