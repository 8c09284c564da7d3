"""One row of each request in Pallas for TPU: a state is copied from its slot to VMEM once, updated, and copied back.

XLA's program for the same gathers the states into an array of their own, goes over them several times and scatters them. The rules of
decayed attention and of the gated delta rule differ in one line.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ...runtime.core.targets import LANES, SUBLANES, Target
from ..ragged_selective_scan.xla_requests import FRESH, NO_ROWS
from ..spec import TensorSpec

VMEM_SHARE = 0.5


def refused(state: TensorSpec, target: Target) -> str | None:
    """None, or why the kernel does not take a state [slots, H, V, K]."""
    _, heads, size, keys = state.shape
    if state.dtype.name != "float32":
        return f"the state is {state.dtype}; the kernel takes float32"
    if keys % LANES or size % SUBLANES:
        return f"a state of {size} by {keys}; the kernel takes multiples of {SUBLANES} by multiples of {LANES}"
    needed = 4 * block_of(heads) * size * keys * 4  # in and out, each twice
    return f"a block of heads needs {needed} bytes of VMEM" if needed > target.vmem * VMEM_SHARE else None


def block_of(heads: int) -> int:
    """Heads that are processed together."""
    return SUBLANES if heads % SUBLANES == 0 else heads


def step(
    state: Array, slots: Array, kinds: Array, q: Array, k: Array, v: Array, decay: Array, read: Array | None
) -> tuple[Array, Array]:
    """One row of each request: state = state decay + (v - state decay read) k', output = state q; without `read`, v alone.

    state float32 [slots, H, V, K], updated in place; slots, kinds int32 [R], as for `along_requests`; q, k, decay, read float32
    [R, H, K]; v float32 [R, H, V]. Returns the outputs [R, H, V] and the state.
    """
    requests, heads, size = v.shape
    keys, block = q.shape[2], block_of(heads)
    place = pl.BlockSpec((1, block, size, keys), lambda head, request, slots, kinds: (slots[request], head, 0, 0))
    row = pl.BlockSpec((1, block, keys), lambda head, request, slots, kinds: (request, head, 0))
    value = pl.BlockSpec((1, block, size), lambda head, request, slots, kinds: (request, head, 0))
    given = [q, k, decay] if read is None else [q, k, decay, read]
    states = requests * heads * size * keys
    output, updated = pl.pallas_call(
        partial(_kernel, block=block, corrects=read is not None),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(heads // block, requests),  # requests inside: the scratch slot of those without rows is copied once
            in_specs=[place, value, *[row] * len(given)],
            out_specs=[value, place],
        ),
        out_shape=[jax.ShapeDtypeStruct(v.shape, jnp.float32), jax.ShapeDtypeStruct(state.shape, jnp.float32)],
        input_output_aliases={2: 1},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(flops=7 * states, bytes_accessed=8 * states, transcendentals=0),
    )(slots, kinds, state, v, *given)
    return output, updated


def _kernel(
    slots: Array, kinds: Array, state: Array, v: Array, q: Array, k: Array, decay: Array, *rest: Array, block: int, corrects: bool
) -> None:  # fmt: skip
    output, updated = rest[-2:]
    kind, size = kinds[pl.program_id(1)], v.shape[2]
    same = jax.lax.broadcasted_iota(jnp.int32, (size, size), 0) == jax.lax.broadcasted_iota(jnp.int32, (size, size), 1)
    for head in range(block):
        at = pl.ds(head, 1)
        old = state[0, head]
        held = jnp.where(kind == FRESH, 0.0, old) * decay[0, at, :]
        # A row of lanes becomes a column of sublanes, and back, by the diagonal.
        change = jnp.sum(jnp.where(same, v[0, at, :], 0.0), axis=1, keepdims=True)
        if corrects:
            change = change - jnp.sum(held * rest[0][0, at, :], axis=1, keepdims=True)
        new = held + change * k[0, at, :]
        made = jnp.sum(new * q[0, at, :], axis=1, keepdims=True)
        output[0, at, :] = jnp.sum(jnp.where(same, made, 0.0), axis=0, keepdims=True)
        updated[0, head] = jnp.where(kind == NO_ROWS, old, new)
