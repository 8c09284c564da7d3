"""Cases of the rules of lowering/ops/linear_algebra.py: argument tuples by overload; a dict at the end of one holds keyword arguments."""

from __future__ import annotations

import torch

from cases.operands import INF, LOWER, LU, MATRIX, NAN, PIVOTS, SQUARES, f, positive

CASES: dict[str, list[tuple]] = {
    "aten.linalg_matrix_exp.default": [
        (f(2, 3, 3),),
        (f(1, 1),),
        (torch.tensor([[[1.0, INF], [0, 1]], [[3e38, 0], [0, 1]], [[50, 20], [0, -80]]]),),
    ],
    "aten._linalg_det.default": [(SQUARES,)],
    "aten._linalg_slogdet.default": [(SQUARES,), (torch.tensor([[1.0, NAN], [0, 1]]),)],
    "aten._linalg_solve_ex.default": [(SQUARES, f(2, 3, 2)), (SQUARES, f(2, 3, 3), {"left": False})],
    "aten._linalg_eigh.default": [(positive(3),), (positive(3) * 1e25,)],
    "aten._linalg_svd.default": [(f(2, 4, 3),), (f(4, 3) * 1e25,)],
    "aten.linalg_qr.default": [(f(2, 4, 3),)],
    "aten.geqrf.default": [(MATRIX,), (MATRIX * 1e25,)],
    "aten.cholesky.default": [(positive(3),), (positive(2), True)],
    "aten.linalg_cholesky_ex.default": [(positive(3),), (positive(3), {"upper": True})],
    "aten.cholesky_inverse.default": [(LOWER,)],
    "aten.cholesky_solve.default": [(f(2, 3, 2), LOWER)],
    "aten.linalg_householder_product.default": [torch.geqrf(MATRIX)],
    "aten.ormqr.default": [(*torch.geqrf(MATRIX), f(4, 2)), (*torch.geqrf(MATRIX), f(2, 4), False, True)],
    "aten.linalg_inv_ex.default": [(SQUARES,)],
    "aten.linalg_lstsq.default": [(f(4, 3), f(4, 2))],
    "aten.linalg_lu.default": [(SQUARES,)],
    "aten.linalg_lu_factor_ex.default": [(SQUARES,), (f(2, 4, 3),)],
    "aten.linalg_lu_solve.default": [
        (LU, PIVOTS, f(2, 3, 2)),
        (LU, PIVOTS, f(2, 3, 3), {"left": False, "adjoint": True}),
    ],
    "aten.lu_unpack.default": [(LU, PIVOTS)],
    "aten.linalg_solve_triangular.default": [
        (LOWER.contiguous(), f(2, 3, 2), {"upper": False}),
        (LOWER.mT.contiguous(), f(2, 4, 3), {"upper": True, "left": False}),
    ],
    "aten.triangular_solve.default": [
        (f(2, 3, 2), LOWER.mT.contiguous()),
        (f(2, 3, 2), LOWER.contiguous(), False, True),
    ],
}
