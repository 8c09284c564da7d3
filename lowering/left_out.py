"""Ops that are left out on purpose, with the reasons that the contract's errors and docs/ops.md give."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class LeftOut:
    """Overloads without a rule, and the reason that they share."""

    ops: tuple[str, ...]
    reason: str


SHAPE = (
    "its result's shape depends on data; a compiled module's shapes are fixed: use a masked form such as torch.where"
)
LEFT_OUT = (
    LeftOut(
        (
            "aten.nonzero.default", "aten.masked_select.default", "aten.unique_consecutive.default",
            "aten._unique2.default", "aten.unique_dim.default", "aten.bincount.default",
            "aten.nonzero_numpy.default", "aten._ctc_loss.default", "aten._ctc_loss.Tensor",
        ),
        SHAPE,
    ),
    LeftOut(("aten.repeat_interleave.Tensor",), "its result's shape depends on the repeats: pass output_size, their sum"),
    LeftOut(
        ("aten._local_scalar_dense.default", "aten.item.default", "aten.equal.default", "aten.allclose.default", "aten.is_nonzero.default"),
        "it gives Python a number that is known only when the module runs: keep it as a 0-d tensor",
    ),
    LeftOut(
        ("aten._to_sparse.default", "aten.to_sparse.default", "aten._sparse_mm_reduce_impl.default", "aten.sparse_sampled_addmm.default"),
        "StableHLO has no sparse tensors: use dense ones",
    ),
    LeftOut(
        ("aten.quantize_per_tensor.default", "aten.quantize_per_channel.default", "aten.dequantize.self"),
        "torch's quantized tensors hold their scale in the dtype: use integers and a scale (quantized_decomposed ops)",
    ),
    LeftOut(
        ("aten.linalg_eig.default", "aten._linalg_eigvals.default", "aten.linalg_eigvals.default"),
        "eigenvalues of general matrices need LAPACK, which a portable module cannot call; symmetric ones: torch.linalg.eigh",
    ),
    LeftOut(
        ("aten.linalg_ldl_factor_ex.default", "aten.linalg_ldl_solve.default"),
        "Bunch and Kaufman's factorization needs LAPACK, which a portable module cannot call: torch.linalg.lu_factor does the same work",
    ),
    LeftOut(
        ("aten.poisson.default", "aten.binomial.default", "aten._standard_gamma.default", "aten._sample_dirichlet.default"),
        "it is drawn by rejection, a number of steps that depends on data: draw it on the host",
    ),
)  # fmt: skip


@cache
def reasons() -> dict[str, str]:
    """Overload -> why it is left out."""
    return {op: entry.reason for entry in LEFT_OUT for op in entry.ops}
