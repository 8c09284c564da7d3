"""`fxhlo.logprobs` in Pallas for TPU: reads each row into VMEM once, without a sort and without writing probabilities.

ids and rank are those of `reference.py`; the values differ by rounding (exp, log and the order of a float sum). The top
tokens are found one at a time: each pass finds the token that follows the previous one in the order of (highest logit,
lowest id), so that passes only read. Skipped if no request enables it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ...runtime.core.targets import LANES, SUBLANES, Target
from ..sample.reference import SMALLEST_NORMAL
from ..sample.tuning import CHUNK, padded, too_large, vmem_bytes
from ..sample.xla_arithmetic import order_of, unordered
from ..spec import Operands
from .xla import where_asked

LOWEST = -(2**31)  # below the image of -infinity; fills positions past the vocabulary


def supports(operands: Operands, attributes: Mapping[str, Any], target: Target) -> str | None:
    logits = operands[0]
    rows, size = logits.shape
    count = attributes["count"]
    if logits.dtype.name not in ("float32", "bfloat16"):
        return f"logits are {logits.dtype}, not float32 or bfloat16"
    if count > size:
        return f"{count} tokens asked of a vocabulary of {size}"
    if rows < 1 or count >= LANES:
        return f"{rows} rows and {count} tokens; results take one vector of {LANES} lanes a row"
    return too_large(size, vmem_bytes(size, logits.dtype.itemsize), target)


def lower(
    logits: Array, tokens: Array, enabled: Array, allowed_mask: Array | None = None, *, count: int
) -> tuple[Array, Array, Array]:
    """Operands and results as in `reference.logprobs`."""
    return where_asked(partial(_compute, tokens=tokens, count=count), logits, enabled, allowed_mask, count)


def _compute(logits: Array, tokens: Array, count: int) -> tuple[Array, Array, Array]:
    rows, size = logits.shape
    block, width = min(rows, SUBLANES), padded(size)
    row = pl.BlockSpec((block, LANES), lambda i: (i, 0))
    call = pl.pallas_call(
        partial(_kernel, size=size, count=count),
        grid=(pl.cdiv(rows, block),),
        in_specs=[pl.BlockSpec((block, 1), lambda i: (i, 0)), pl.BlockSpec((block, width), lambda i: (i, 0))],
        out_specs=[row] * 3,
        out_shape=[jax.ShapeDtypeStruct((rows, LANES), dtype) for dtype in (jnp.int32, jnp.float32, jnp.int32)],
        scratch_shapes=[pltpu.VMEM((block, width), jnp.int32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=vmem_bytes(size, logits.dtype.itemsize)
        ),
        cost_estimate=pl.CostEstimate(
            flops=(12 + 10 * count) * rows * size,
            bytes_accessed=logits.nbytes + 12 * rows * LANES,
            transcendentals=rows * size,
        ),
        name="fxhlo_logprobs",
    )
    ids, values, rank = call(jnp.clip(tokens, 0, size - 1)[:, None], logits)  # a sampled token may be out of range
    return jnp.concatenate([tokens[:, None], ids[:, 1 : count + 1]], axis=1), values[:, : count + 1], rank[:, 0]


def _kernel(tokens: Any, logits: Any, ids: Any, values: Any, rank: Any, image: Any, *, size: int, count: int) -> None:
    shape = ids.shape
    token = jnp.broadcast_to(tokens[...], shape)
    best, chosen = _order(logits, image, token, size)
    total, rank[...] = _total(logits, image, best, chosen, size)
    column = lax.broadcasted_iota(jnp.int32, shape, 1)

    def take(place: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        value, last, all_ids, all_values = state
        value, last = _next(image, value, last, size)
        all_ids = jnp.where(column == place, last, all_ids)
        return value, last, all_ids, jnp.where(column == place, unordered(value), all_values)

    # The state before the first pass: above every logit.
    first = jnp.full(shape, 2**31 - 1, jnp.int32), jnp.full(shape, -1, jnp.int32), token, unordered(chosen)
    _, _, all_ids, all_values = lax.fori_loop(1, count + 1, take, first)
    ids[...] = all_ids
    values[...] = (all_values - unordered(best)) - jnp.log(total)


def _passes(width: int, body: Callable[[Array, Any], Any], state: Any) -> Any:
    """Folds `body(start, state)` over the chunks of a row."""

    def step(index: Array, state: Any) -> Any:
        return body(pl.multiple_of(index * CHUNK, CHUNK), state)

    return lax.fori_loop(0, width // CHUNK, step, state)


def _across(x: Array, combine: Callable[[Array, Array], Array]) -> Array:
    """Combines all lanes; every lane holds the result."""
    for distance in (64, 32, 16, 8, 4, 2, 1):
        x = combine(x, pltpu.roll(x, distance, 1))
    return x


def _lanes(x: Array) -> list[Array]:
    return [x[:, lane : lane + LANES] for lane in range(0, x.shape[1], LANES)]


def _order(logits: Any, image: Any, token: Array, size: int) -> tuple[Array, Array]:
    """Fills the image with the logits' order images; returns (the highest, the sampled token's)."""
    block, width = image.shape
    place = lax.broadcasted_iota(jnp.int32, (block, CHUNK), 1)

    def body(start: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        best, chosen = state
        at = place + start
        x = logits[:, pl.ds(start, CHUNK)].astype(jnp.float32)
        x = jnp.where(x != x, -jnp.inf, x)
        x = jnp.where(jnp.abs(x) < SMALLEST_NORMAL, 0.0, x)
        order = jnp.where(at < size, order_of(x), LOWEST)
        image[:, pl.ds(start, CHUNK)] = order
        for one, here in zip(_lanes(order), _lanes(at), strict=True):
            best = jnp.maximum(best, one)
            chosen = jnp.maximum(chosen, jnp.where(here == token, one, LOWEST))
        return best, chosen

    lowest = jnp.full(token.shape, LOWEST, jnp.int32)
    return tuple(_across(one, jnp.maximum) for one in _passes(width, body, (lowest, lowest)))  # type: ignore[return-value]


def _total(logits: Any, image: Any, best: Array, chosen: Array, size: int) -> tuple[Array, Array]:
    """(sum of exp(logit - best), NaN if the row contains NaN; number of tokens at least as likely as the sampled one)."""
    block, width = image.shape
    lane = lax.broadcasted_iota(jnp.int32, (block, LANES), 1)
    highest = unordered(best)

    def body(start: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        total, rank = state
        x = logits[:, pl.ds(start, CHUNK)].astype(jnp.float32)
        order = image[:, pl.ds(start, CHUNK)]
        for index, (one, value) in enumerate(zip(_lanes(x), _lanes(order), strict=True)):
            inside = lane + (start + index * LANES) < size
            total = total + jnp.where(inside, jnp.exp(one - highest), 0.0)
            rank = rank + jnp.where(inside & (value >= chosen), 1, 0)
        return total, rank

    zero = jnp.zeros(best.shape, jnp.float32), jnp.zeros(best.shape, jnp.int32)
    total, rank = _passes(width, body, zero)
    return _across(total, jnp.add), _across(rank, jnp.add)


def _next(image: Any, value: Array, token: Array, size: int) -> tuple[Array, Array]:
    """(order image, id) of the token that follows (value, token) in the order of (highest logit, lowest id)."""
    block, width = image.shape
    lane = lax.broadcasted_iota(jnp.int32, (block, LANES), 1)

    def body(start: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        best, found = state
        for index, one in enumerate(_lanes(image[:, pl.ds(start, CHUNK)])):
            at = lane + (start + index * LANES)
            after = (one < value) | ((one == value) & (at > token))
            one = jnp.where(after, one, LOWEST)
            found = jnp.where(one > best, at, found)
            best = jnp.maximum(best, one)
        return best, found

    first = jnp.full(value.shape, LOWEST, jnp.int32), jnp.full(value.shape, size, jnp.int32)
    best, found = _passes(width, body, first)
    highest = _across(best, jnp.maximum)
    return highest, _across(jnp.where(best == highest, found, size), jnp.minimum)
