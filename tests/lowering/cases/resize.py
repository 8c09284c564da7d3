"""Cases of the rules of lowering/ops/resize.py: argument tuples by overload; a dict at the end of one holds keyword arguments."""

from __future__ import annotations

from cases.operands import BYTES, IMAGE, INFINITE, VOLUME, WAVE

CASES: dict[str, list[tuple]] = {
    **{
        f"aten.{name}1d.default": [(WAVE, [13]), (WAVE, [5], 0.6)]
        for name in ("upsample_nearest", "_upsample_nearest_exact")
    },
    **{
        f"aten.{name}2d.default": [
            (IMAGE, [9, 4]),
            (IMAGE, [12, 14], 2.0, 2.0),
            (IMAGE, [6, 7], 1.15, 1.1),
            (IMAGE, [12, 14], 2.1, 2.05),
            (IMAGE, [6, 9], 1.1, 1.3),
        ]
        for name in ("upsample_nearest", "_upsample_nearest_exact")
    },
    **{f"aten.{name}3d.default": [(VOLUME, [5, 3, 8])] for name in ("upsample_nearest", "_upsample_nearest_exact")},
    **{
        f"aten.{name}{rank}d.vec": [(x, None, [1.5] * rank), (x, [5] * rank, None)]
        for name in ("upsample_nearest", "_upsample_nearest_exact")
        for rank, x in ((1, WAVE), (2, IMAGE), (3, VOLUME))
    },
    "aten.upsample_linear1d.default": [(WAVE, [13], corners) for corners in (False, True)],
    "aten.upsample_linear1d.vec": [(WAVE, None, False, [1.5]), (WAVE, None, False, [1.05])],
    **{
        f"aten.upsample_{name}2d.default": [(IMAGE, [9, 4], corners) for corners in (False, True)]
        for name in ("bilinear", "bicubic")
    },
    **{
        f"aten.upsample_{name}2d.vec": [
            (IMAGE, None, False, [1.5, 0.7]),
            (IMAGE, [4, 4], True, None),
            (IMAGE, None, False, [1.1, 1.1]),
            (INFINITE, [6, 7], False, None),
            (INFINITE, [6, 9], True, None),
            (BYTES, [12, 5], False, None),
            (BYTES, None, False, [1.7, 1.7]),
            (BYTES, [9, 20], True, None),
        ]
        for name in ("bilinear", "bicubic")
    },
    "aten.upsample_trilinear3d.default": [(VOLUME, [5, 3, 8], corners) for corners in (False, True)],
    "aten.upsample_trilinear3d.vec": [(VOLUME, None, False, [1.5, 1.5, 0.5])],
    **{
        f"aten._upsample_{name}2d_aa.default": [
            (IMAGE, [9, 4], False),
            (IMAGE, [3, 3], True),
            (IMAGE, [6, 7], False, 1.1, 1.1),
            (INFINITE, [9, 10], False),
            (BYTES, [12, 5], False),
        ]
        for name in ("bilinear", "bicubic", "lanczos")
    },
}
