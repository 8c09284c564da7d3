"""What of a case's results is compared with eager torch, how closely, and what stands for eager torch where its kernels lack the op."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from fxhlo.lowering.registry import rules


def _reconstructed(a: torch.Tensor, *others: torch.Tensor) -> Any:
    """Factors whose signs are free, as the product that they stand for."""
    return (a.abs(), *[other.abs() for other in others])


def _r(q: torch.Tensor, r: torch.Tensor) -> Any:
    return q @ r, r.abs()


def _svd(u: torch.Tensor, s: torch.Tensor, vh: torch.Tensor) -> Any:
    return (u * s.unsqueeze(-2)) @ vh, s


def _eigh(values: torch.Tensor, vectors: torch.Tensor) -> Any:
    return values, (vectors * values.unsqueeze(-2)) @ vectors.mT


def _lengths(*results: torch.Tensor) -> Any:
    """dtype and shape alone, for values that nobody promises."""
    return [torch.zeros_like(result) for result in results]


def _shifted(name: str, x: torch.Tensor | float, n: torch.Tensor | float) -> torch.Tensor:
    """A shifted polynomial by the plain one: T*(x) = T(2x - 1)."""
    return getattr(torch.special, name)(2 * torch.as_tensor(x) - 1, n)


SEEN: dict[str, Callable[..., Any]] = {
    "aten._linalg_svd.default": _svd,
    "aten._linalg_eigh.default": _eigh,
    "aten.linalg_qr.default": _r,
    "aten.geqrf.default": _reconstructed,
    "aten._linalg_det.default": lambda result, *_: result,
    "aten._linalg_slogdet.default": lambda sign, log, *_: (sign, log),
    "aten._linalg_solve_ex.default": lambda result, *_: result,
    "aten.linalg_lstsq.default": lambda solution, *_: solution,
    **dict.fromkeys(
        (
            "aten.empty_like.default",
            "aten.empty.memory_format",
            "aten.empty_strided.default",
            "aten.empty_permuted.default",
            "aten.new_empty.default",
            "aten.new_empty_strided.default",
        ),
        _lengths,
    ),
    **{f"aten.{name}.default": lambda result, *_: result for name in ("_embedding_bag", "_embedding_bag_forward_only")},
    "aten.sort.default": lambda values, indices: values,
    "aten._native_batch_norm_legit_no_training.default": lambda result, *_: result,
}
"""Overload -> what of its results has one meaning; all results of the others."""

LOOSE = {"rtol": 1e-4, "atol": 1e-5}
TOLERANCES: dict[str, dict[str, float]] = {
    **dict.fromkeys(
        ("aten.lgamma.default", "aten.digamma.default", "aten.erfinv.default", "aten.special_ndtri.default"), LOOSE
    ),
    **{name: LOOSE for name in rules() if "linalg" in name or "bessel" in name or "lu_" in name or "cholesky" in name},
}

REFERENCES: dict[str, Callable[..., torch.Tensor]] = {
    name: lambda one, other, dtype: one.to(dtype) @ other.to(dtype) for name in ("aten.mm.dtype", "aten.bmm.dtype")
} | {
    f"aten.special_shifted_{name}.{overload}": partial(_shifted, name)
    for name in ("chebyshev_polynomial_t", "chebyshev_polynomial_u", "chebyshev_polynomial_v", "chebyshev_polynomial_w")
    for overload in ("default", "x_scalar", "n_scalar")
}
"""What stands for eager torch where its CPU kernels lack the op."""
