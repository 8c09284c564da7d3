"""The decomposition table: which ops are decomposed before lowering, and by which function.

It merges torch's core decompositions, ops from torch's larger table that they lack, and DECOMPOSITIONS, for ops that torch does not
decompose, or decomposes in a way that is not functional, cannot be exported or differs from ATen's result. An op with a rule is never
decomposed: its rule is shorter, faster to emit, and keeps the op recognizable in the module.

Each function of ours has the parameters of its op's ATen schema and runs in eager torch, so tests compare it with the op.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.modules.linear_cross_entropy  # registers its ops

from ...passes.fx.random_key import DISTRIBUTIONS
from ...passes.torch_private import OpOverload, decomposition_table, is_mutable
from ..registry import overload_name, rules
from . import (
    convolution,
    create,
    histograms,
    indexing,
    linear_algebra,
    losses,
    norms,
    pools,
    reductions,
    sampling,
    strides,
)
from .attention import scaled_dot_product_attention

aten = torch.ops.aten

DECOMPOSITIONS: dict[OpOverload, Callable[..., Any]] = {
    aten.as_strided.default: strides.as_strided,
    aten.as_strided_copy.default: strides.as_strided,
    aten.as_strided_scatter.default: strides.as_strided_scatter,
    aten.resize.default: strides.resize,
    aten._cdist_forward.default: linear_algebra.cdist_forward,
    aten._pdist_forward.default: linear_algebra.pdist_forward,
    aten._trilinear.default: linear_algebra.trilinear,
    aten.linalg_pinv.atol_rtol_tensor: linear_algebra.pinv,
    aten.max_pool2d_with_indices_backward.default: pools.max_pool2d_backward,
    aten.avg_pool2d_backward.default: pools.avg_pool2d_backward,
    aten._adaptive_avg_pool2d_backward.default: pools.adaptive_avg_pool2d_backward,
    aten.fractional_max_pool2d.default: pools.fractional_max_pool,
    aten.fractional_max_pool3d.default: pools.fractional_max_pool,
    aten.convolution_backward.default: convolution.convolution_backward,
    aten._native_batch_norm_legit_functional.default: norms.batch_norm_functional,
    aten._native_batch_norm_legit.no_stats: norms.batch_norm_no_stats,
    aten._batch_norm_with_update_functional.default: norms.batch_norm_with_update_functional,
    torch.ops.torch_nn._linear_cross_entropy_batch_chunked.default: losses.linear_cross_entropy,
    torch.ops.torch_nn._linear_cross_entropy_batch_chunked_no_reduction.default: losses.linear_cross_entropy_no_reduction,
    aten.multi_margin_loss.default: losses.multi_margin_loss,
    aten.multilabel_margin_loss_forward.default: losses.multilabel_margin_loss,
    aten.grid_sampler_3d.default: sampling.grid_sampler_3d,
    aten.affine_grid_generator.default: sampling.affine_grid_generator,
    aten.repeat_interleave.Tensor: indexing.repeat_interleave,
    aten.histc.default: histograms.histc,
    aten.histogram.bin_ct: histograms.histogram,
    aten.histogram.bins_tensor: histograms.histogram_of_edges,
    aten._histogramdd_bin_edges.default: histograms.histogramdd_edges,
    aten._histogramdd_from_bin_cts.default: histograms.histogramdd,
    aten._histogramdd_from_bin_tensors.default: histograms.histogramdd_of_edges,
    aten.hash_tensor.default: reductions.hash_tensor,
    aten.segment_reduce.default: reductions.segment_reduce,
    aten.linspace.Tensor_Tensor: create.linspace,
    aten.linspace.Tensor_Scalar: create.linspace,
    aten.linspace.Scalar_Tensor: create.linspace,
    aten.scaled_dot_product_attention.default: scaled_dot_product_attention,
}

ABOVE_TABLES: dict[OpOverload, Callable[..., Any]] = {aten.upsample_linear1d.vec: sampling.upsample_linear1d}
"""Decompositions of composite ops, which torch would decompose before it consults a table."""

VIEWS = {aten.view.default: strides.view}
"""Decompositions of ops that have a rule: they return NotImplemented if the op is kept."""


@cache
def decompositions() -> dict[OpOverload, Callable[..., Any]]:
    """Overload -> decomposition, without ops that have rules (except VIEWS). Cached."""
    keep = {*rules(), *(overload_name(op) for op in DISTRIBUTIONS)}  # a pass lowers random ops
    larger = {op: function for op, function in decomposition_table.items() if _functional(op)}
    table = {**larger, **torch.export.default_decompositions(), **DECOMPOSITIONS}
    decomposed = {
        op: function for op, function in table.items() if isinstance(op, OpOverload) and overload_name(op) not in keep
    }
    return {**decomposed, **VIEWS}


def _functional(op: object) -> bool:
    """Whether `op` is an ATen overload that does not mutate its arguments."""
    return isinstance(op, OpOverload) and op.namespace == "aten" and not is_mutable(op)
