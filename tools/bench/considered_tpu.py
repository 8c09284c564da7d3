"""Kernels that were considered for TPU: the compiler's figures for XLA's program, and for a kernel where there is one.

Comes in: nothing but libtpu; nothing is timed. Goes out: a row per program and target: bytes accessed by XLA's cost analysis,
temporaries, and `estimated_cycles` of fusions and copies (a Pallas call and a sort have none). Verdicts are in
docs/kernels_considered.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .tpu_kernels.compiler import xla_cycles

if TYPE_CHECKING:
    from jax import Array
    from rich.table import Table

TARGETS = ("tpu-v5e", "tpu-v6e")


@dataclass(frozen=True)
class Candidate:
    """A JAX function and its operands as (shape, dtype); least: the bytes that have to be moved."""

    group: str
    name: str
    function: Callable[..., Array]
    operands: tuple[tuple[tuple[int, ...], str], ...]
    least: int


@dataclass(frozen=True)
class Figure:
    group: str
    name: str
    target: str
    bytes: float
    least: int
    temporaries: int
    cycles: float
    refused: str = ""


def candidates() -> Iterator[Candidate]:
    yield from _matmuls()
    yield from _attentions()
    yield from _experts()


def _matmuls() -> Iterator[Candidate]:
    """Matmuls with 8-bit and 4-bit weights in plain StableHLO: does XLA read the narrow weight, or widen it first?"""
    import jax.numpy as jnp
    from jax import lax

    def product(values: Array, weight: Array) -> Array:
        return lax.dot_general(values, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)

    def wide(values: Array, weight: Array) -> Array:
        return product(values, weight).astype(values.dtype)

    def scaled(values: Array, weight: Array, scale: Array) -> Array:
        return (product(values, weight.astype(values.dtype)) * scale).astype(values.dtype)

    def packed(values: Array, weight: Array, scale: Array) -> Array:
        """Two weights per byte: the low nibbles are the first half of the inputs, as in kernels/quantized_matmul."""
        low, high = (weight << 4) >> 4, weight >> 4
        half = weight.shape[1]
        both = product(values[:, :half], low.astype(values.dtype)) + product(
            values[:, half:], high.astype(values.dtype)
        )
        return (both * scale).astype(values.dtype)

    inputs, outputs = 4096, 14336
    for rows in (8, 64, 1024):
        values, scale = ((rows, inputs), "bfloat16"), ((outputs,), "float32")
        moved = 2 * rows * (inputs + outputs)
        group = f"product, {rows} rows, {inputs} by {outputs}"
        yield Candidate(
            group, "bfloat16", wide, (values, ((outputs, inputs), "bfloat16")), moved + 2 * inputs * outputs
        )
        for dtype in ("int8", "float8_e4m3fn"):
            operands = (values, ((outputs, inputs), dtype), scale)
            yield Candidate(group, dtype, scaled, operands, moved + inputs * outputs)
        operands = (values, ((outputs, inputs), "int4"), scale)
        yield Candidate(group, "int4", scaled, operands, moved + inputs * outputs // 2)
        operands = (values, ((outputs, inputs // 2), "int8"), scale)
        yield Candidate(group, "int4, two a byte", packed, operands, moved + inputs * outputs // 2)


def _attentions() -> Iterator[Candidate]:
    """An encoder's attention over 16 heads of 64: by XLA, and by the flash attention of the jax wheel."""
    from ...kernels.attention import tpu, xla

    named: dict[str, Any] = {"layer": "", "scale": 0.125, "sliding_window": 0, "soft_cap": 0.0, "causal": False}

    def plain(query: Array, key: Array, value: Array) -> Array:
        return xla.lower(query, key, value, **named)

    def flash(query: Array, key: Array, value: Array) -> Array:
        return tpu.lower(query, key, value, **named)

    for tokens in (256, 512, 577, 1024, 1500, 2048, 8192):
        operands = tuple(((tokens, 16, 64), "bfloat16") for _ in range(3))
        least = 4 * 16 * tokens * 64 * 2
        group = f"attention without a cache, {tokens} tokens, 16 heads of 64"
        yield Candidate(group, "XLA", plain, operands, least)
        yield Candidate(group, "flash (jax wheel)", flash, operands, least)


def _experts() -> Iterator[Candidate]:
    """Grouped matmul of rows sorted by expert: 8 experts of 4096 by 14336, as in Mixtral."""
    import jax.numpy as jnp
    from jax import lax
    from jax.experimental.pallas.ops.tpu.megablox import gmm

    def ragged(values: Array, weights: Array, sizes: Array) -> Array:
        return lax.ragged_dot(values, weights, sizes, preferred_element_type=jnp.float32).astype(values.dtype)

    def every(values: Array, weights: Array, sizes: Array) -> Array:
        """Computes all experts for all rows and selects, as plain StableHLO does."""
        ends = jnp.cumsum(sizes)
        expert = jnp.sum(jnp.arange(values.shape[0])[:, None] >= ends[None, :], axis=1)
        chosen = (expert[:, None] == jnp.arange(weights.shape[0])[None, :]).astype(values.dtype)
        return jnp.einsum("me,mk,ekn->mn", chosen, values, weights)

    def blocks(values: Array, weights: Array, sizes: Array) -> Array:
        tile = (min(values.shape[0], 512), 1024, 1024)
        return gmm(values, weights, sizes, preferred_element_type=jnp.bfloat16, tiling=tile)

    for rows in (128, 2048):
        operands = (((rows, 4096), "bfloat16"), ((8, 4096, 14336), "bfloat16"), ((8,), "int32"))
        least = 2 * (rows * (4096 + 14336) + 8 * 4096 * 14336)
        group = f"grouped product, {rows} rows, 8 experts of 4096 by 14336"
        for name, function in (("every expert", every), ("ragged_dot", ragged), ("megablox (jax wheel)", blocks)):
            yield Candidate(group, name, function, operands, least)


def measure(say: Callable[[str], None]) -> list[Figure]:
    found = []
    for candidate in candidates():
        say(f"considered-tpu: {candidate.group}: {candidate.name}")
        found += [_figure(candidate, target) for target in TARGETS]
    return found


def _figure(candidate: Candidate, target: str) -> Figure:
    import ml_dtypes

    from ...kernels.spec import Implementation, Operands, TensorSpec
    from ...passes.hlo.implementation import lower_implementation
    from ...runtime.core.errors import FxhloError
    from ...runtime.core.pjrt import compile_ahead
    from ...runtime.core.targets import Target

    def dtype(name: str) -> np.dtype:
        return np.dtype(getattr(ml_dtypes, name, name))

    specs = [TensorSpec(shape, dtype(name)) for shape, name in candidate.operands]
    names = [f"operand{index}" for index in range(len(specs))]

    def call(**named: Array) -> Array:
        return candidate.function(*(named[name] for name in names))

    where = Target.parse(target)
    try:
        text = lower_implementation(Implementation("tpu", "candidate", call), Operands.of(names, specs), {}, where)
        compiled = compile_ahead(text, where)
    except (FxhloError, NotImplementedError, ValueError) as problem:
        return Figure(candidate.group, candidate.name, target, 0, candidate.least, 0, 0, str(problem).splitlines()[0])
    analysis = compiled.raw.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    return Figure(
        candidate.group, candidate.name, target, float(analysis["bytes accessed"]), candidate.least,
        compiled.memory.temporaries, xla_cycles(compiled.text, asked=True),
    )  # fmt: skip


def table(figures: list[Figure]) -> Table:
    from rich.table import Table

    made = Table(
        "program", "way", "target", "MB moved", "at least", "temporaries MB", "cycles", title="Kernels considered"
    )
    for one in figures:
        megabytes = (one.bytes, one.least, one.temporaries)
        numbers = [f"{value / 1e6:,.1f}" for value in megabytes] + [f"{one.cycles:,.0f}" if one.cycles else "-"]
        numbers = [one.refused[:60], "", "", ""] if one.refused else numbers
        made.add_row(one.group, one.name, one.target, *numbers)
    return made
