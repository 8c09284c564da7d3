"""The forms of a kernel that are compared: the implementations of its folder, forms within one of them, and peers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ....kernels.spec import Implementation, Kernel, Operands
from ....runtime.core.targets import Target
from . import wheel
from .layers import Layer

if TYPE_CHECKING:
    from jax import Array

LATENT = "ragged_paged_latent_attention"
DECOMPRESSED_ROWS = 512
"""Rows of a tile in XLA's decompressed form."""


def implementation(kernel: Kernel, layer: Layer, form: str) -> Implementation:
    """The form as an implementation, which can be compiled alone."""
    if form == "ragged dot":
        return Implementation("tpu", form, _by_ragged_dot)
    if form == "wheel":
        return Implementation("tpu", form, wheel.call, row_major=("kv_cache",))
    name = "xla" if form.startswith("xla") else "pallas"
    (found,) = (one for one in kernel.implementations if one.name == name and one.target in ("tpu", "any"))
    if kernel.name != LATENT or layer.step is None:
        return found
    if name == "pallas":
        return replace(found, lower=partial(_latent_form, form=form if form != "pallas" else "absorbed"))
    return replace(found, lower=partial(_latent_by_xla, form=form))


def taken(kernel: Kernel, layer: Layer, form: str, target: Target) -> bool:
    """Whether legalization takes the form for these operands, and the kernel for these rows."""
    chosen, _ = kernel.choice(Operands.of(layer.operands, layer.operands.values()), layer.attributes, target)
    name = chosen.name if chosen else "reference"
    if name == "pallas" and form in ("absorbed", "decompressed") and layer.step:
        from ....kernels.paged_latent_attention.tuning import prompt_blocks_for

        blocks = prompt_blocks_for(*(layer.operands[one] for one in ("query", "kv_cache", "w_uk", "w_uv")), target)
        return form == ("decompressed" if blocks and layer.step.each >= blocks.least else "absorbed")
    return form == name


def turns(layer: Layer, form: str) -> tuple[int, ...]:
    """How often the loops of XLA's program turn that have no known count, from the outermost on."""
    if layer.kernel == "moe":
        return (_expert_turns(layer) if form == "xla" else 1,)
    assert layer.step is not None
    if not form.startswith("xla"):
        return (1,)
    if layer.kernel in (LATENT, "ragged_paged_attention"):
        blocks = layer.step.context // 128
        tile = DECOMPRESSED_ROWS if "decompressed" in form else 64
        each = -(-layer.step.each // tile)
        return (blocks,) if layer.step.each == 1 else (layer.step.requests, each, blocks)
    return (1,) if layer.step.each == 1 else (layer.step.requests, -(-layer.step.each // tile_of(layer, form)))


def tile_of(layer: Layer, form: str) -> int:
    """Rows of a tile of a recurrence."""
    from ....kernels.ragged_gated_delta_rule import tpu as delta_tpu
    from ....kernels.ragged_gated_delta_rule import xla as delta_xla
    from ....kernels.ragged_selective_scan import xla as scan_xla
    from ....kernels.ragged_ssd import tpu as ssd_tpu
    from ....kernels.ragged_ssd import xla as ssd_xla

    if layer.kernel == "ragged_selective_scan":
        return scan_xla.TILE
    if "beta" not in layer.operands:
        return ssd_tpu.WIDTH if form == "pallas" else ssd_xla.TILE
    if form == "pallas":
        return delta_tpu.WIDTH
    return delta_xla.CHANNEL_TILE if len(layer.operands["g"].shape) == 3 else delta_xla.TILE


def _expert_turns(layer: Layer) -> int:
    """The loop in StableHLO turns once for each block of an expert's rows; rows choose as many experts as they can, evenly."""
    from ....kernels.grouped_matmul.xla import block_of

    choices, experts = chosen_experts(layer)
    count = layer.operands["w13"].shape[0]
    return experts * -(-choices // experts // block_of(choices, count))


def chosen_experts(layer: Layer) -> tuple[int, int]:
    """(pairs of a row and an expert, experts that some row chose)."""
    rows, top = layer.operands["topk_ids"].shape
    return rows * top, min(rows * top, layer.operands["w13"].shape[0])


def _latent_form(*, form: str, target: Target, **named: Any) -> Any:
    from ....kernels.paged_latent_attention import tpu

    return tpu.lower(**named, target=target, form=form)


def _latent_by_xla(*, form: str, target: Target, **named: Any) -> Any:
    """One form for all requests, so that loops have one count."""
    from ....kernels.paged_attention import xla as paged
    from ....kernels.paged_latent_attention import xla as latent

    changes: list[tuple[Any, str, Any]] = [(latent, "DECOMPRESSED_TILE", 0)]
    if "decompressed" in form:
        changes += [(paged, "QUERY_TILE", DECOMPRESSED_ROWS), (latent.Forms, "absorbed", latent.Forms.decompressed)]
    with _changed(changes):
        return latent.lower(**named, target=target)


@contextmanager
def _changed(changes: list[tuple[Any, str, Any]]) -> Iterator[None]:
    before = [(where, name, getattr(where, name)) for where, name, _ in changes]
    for where, name, value in changes:
        setattr(where, name, value)
    yield
    for where, name, value in before:
        setattr(where, name, value)


def _by_ragged_dot(**named: Any) -> Array:
    """Experts by XLA's ragged dot. It is a custom call, which has no estimate: its copies alone are counted, which favours it."""
    import jax.numpy as jnp
    from jax import lax

    from ....kernels.moe.xla import experts

    dimensions = lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((1,), (2,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[0]
    )

    def product(values: Array, weights: Array, sizes: Array) -> Array:
        return lax.ragged_dot_general(values, weights, sizes, dimensions, preferred_element_type=jnp.float32)

    return experts(lambda sizes: partial(product, sizes=sizes), **named)
