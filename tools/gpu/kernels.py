"""Compares every kernel that has an implementation for the target with its reference, over the cases that make values, and times paged attention.

Comes in: a card, the jax device of this process. Goes out: a row a case. Where the target is the host, kernels run in Pallas' interpreter. Needs jax and torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ...kernels.catalog import kernels
from ...kernels.paged_attention.cuda_attend import Layout, Meaning, attend
from ...kernels.paged_attention.cuda_tiles import Tiles, shared_of, tiles_for
from ...kernels.spec import Case, Implementation, Kernel, Operands, TensorSpec
from ...runtime.core.targets import Target
from ..differences import difference

REPEATED = 50
OTHERS = (
    (64, 1, 4, 3), (64, 4, 4, 3), (64, 8, 4, 3), (32, 2, 4, 3), (128, 2, 4, 2), (64, 2, 2, 3), (64, 2, 8, 3), (64, 2, 4, 2), (64, 2, 4, 4),
)  # fmt: skip
"""(keys of a step, splits, warps, stages) that are tried beside those of `tiles_for`."""


@dataclass(frozen=True)
class Compared:
    """One case. difference: the largest, as a part of the reference's largest magnitude; problem: what the compiler or the run said."""

    kernel: str
    case: str
    implementation: str
    difference: float | None
    tolerance: float
    seconds: float
    problem: str = ""

    @property
    def right(self) -> bool:
        return self.difference is not None and self.difference <= self.tolerance


def compare(card: Target, most: int | None = None) -> Iterator[Compared]:
    """What the card takes. most: cases a kernel."""
    for kernel in kernels().values():
        cases = [case for case in kernel.cases() if case.values is not None]
        for case in cases[:most]:
            implementation, _ = kernel.choice(Operands.of(case.operands, case.operands.values()), case.attributes, card)
            if implementation is not None and implementation.target == card.family:
                yield _compared(kernel, case, implementation, card)


def _compared(kernel: Kernel, case: Case, implementation: Implementation, card: Target) -> Compared:
    assert case.values is not None
    arrays = case.values(np.random.default_rng(0))
    began = perf_counter()
    try:
        results = run(implementation, case, arrays, card)
        apart = difference(kernel, case, results, arrays)
        problem = ""
    except Exception as failed:  # a compiler's, a driver's: the other cases go on
        apart, problem = None, f"{type(failed).__name__}: {failed}"[:500]
    taken = perf_counter() - began
    return Compared(kernel.name, case.name, implementation.name, apart, case.tolerance, taken, problem)


def run(implementation: Implementation, case: Case, arrays: Mapping[str, np.ndarray], card: Target) -> list[np.ndarray]:
    """The implementation's results on jax's first device, in the interpreter where that is the host."""
    lower = implementation.bound(card)
    with interpreted():
        results = jax.jit(lambda given: lower(**given, **case.attributes))(dict(arrays))
    return [np.asarray(one) for one in (results if isinstance(results, tuple | list) else (results,))]


def interpreted() -> AbstractContextManager[Any]:
    """Pallas' plain interpreter on the host; nothing elsewhere."""
    if jax.devices()[0].platform != "cpu":
        return nullcontext()
    from jax.experimental.pallas import tpu as pltpu

    return pltpu.force_tpu_interpret_mode(True)  # type: ignore[arg-type]  # the plain one, for any kernel


# -- times of paged attention -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tried:
    """Seconds of one call of paged attention with these sizes; bytes: of the keys and values that it reads."""

    tiles: str
    seconds: float | None
    bytes: int
    problem: str = ""


def sweep(
    card: Target,
    requests: int,
    context: int,
    heads: int = 32,
    kv_heads: int = 8,
    size: int = 128,
    page: int = 16,
    *,
    fast: bool = False,
) -> Iterator[Tried]:
    """A decode step's attention of one layer: the sizes that `tiles_for` gives first, then others."""
    query = TensorSpec((requests, heads, size), np.dtype(jnp.bfloat16))
    cache = TensorSpec((requests * context // page, page, 2 * kv_heads, size), np.dtype(jnp.bfloat16))
    chosen = tiles_for(query, cache, requests, context // page, shared_of(card))
    others = [
        replace(chosen, keys=keys, splits=splits, warps=warps, stages=stages) for keys, splits, warps, stages in OTHERS
    ]
    key = jax.random.key(0)
    queries = jax.random.normal(key, query.shape, query.dtype)
    pages = jax.random.normal(key, cache.shape, cache.dtype)
    tables = jax.random.permutation(key, cache.shape[0]).reshape(requests, -1).astype(jnp.int32)
    read = requests * context * 2 * kv_heads * size * 2
    for tiles in [chosen, *(one for one in others if one != chosen and not fast)]:
        try:
            yield Tried(str(tiles), _seconds(queries, pages, tables, context, tiles), read)
        except Exception as failed:  # too much shared memory, say
            yield Tried(str(tiles), None, read, f"{type(failed).__name__}: {failed}"[:300])


def _seconds(queries: Array, pages: Array, tables: Array, context: int, tiles: Tiles) -> float:
    """Of one call, of many in one program: each takes the result of the one before."""
    requests = queries.shape[0]
    lengths, starts = jnp.full(requests, context, jnp.int32), jnp.arange(requests + 1, dtype=jnp.int32)
    meaning = Meaning(scale=queries.shape[2] ** -0.5, sliding_window=0, chunk=0, soft_cap=0.0)
    batch, layout = (tables, lengths, starts), Layout(((0, queries.shape[2]),), pairs=True)

    def many(queries: Array, pages: Array) -> Array:
        def one(_: Array, given: Array) -> Array:
            return attend(given, pages, *batch, {}, meaning, layout, tiles)

        return lax.fori_loop(0, REPEATED, one, queries)

    with interpreted():
        ready = jax.jit(many).lower(queries, pages).compile()
    ready(queries, pages).block_until_ready()
    began = perf_counter()
    ready(queries, pages).block_until_ready()
    return (perf_counter() - began) / REPEATED
