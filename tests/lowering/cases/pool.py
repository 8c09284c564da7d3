"""Cases of the rules of lowering/ops/pool.py: argument tuples by overload; a dict at the end of one holds keyword arguments."""

from __future__ import annotations

from cases.operands import IMAGE, VOLUME, WAVE, f

CASES: dict[str, list[tuple]] = {
    "aten.max_pool2d_with_indices.default": [
        (IMAGE, [2, 3]),
        (IMAGE, [3], [2], [1], [1], True),
        (f(3, 6, 7), [2], [1], [0], [2]),
        (IMAGE.bfloat16(), [2]),
    ],
    "aten.max_pool3d_with_indices.default": [(VOLUME, [2]), (VOLUME, [2], [1], [1], [1], True)],
    "aten.avg_pool1d.default": [(WAVE, [3]), (WAVE, [3], [2], [1], True, False)],
    "aten.avg_pool2d.default": [
        (IMAGE, [2, 3]),
        (IMAGE, [3], [2], [1], True, False),
        (IMAGE, [3], [2], [1], True, True),
        (IMAGE, [2], [2], [0], False, True, 3),
        (IMAGE.bfloat16(), [2]),
    ],
    "aten.avg_pool3d.default": [(VOLUME, [2]), (VOLUME, [2], [1], [1], True, False)],
    "aten.adaptive_avg_pool1d.default": [(WAVE, [4]), (f(3, 9), [3])],
    "aten._adaptive_avg_pool2d.default": [(IMAGE, [3, 5]), (IMAGE, [1, 1])],
    "aten._adaptive_avg_pool3d.default": [(VOLUME, [2, 3, 4])],
    "aten.adaptive_max_pool2d.default": [(IMAGE, [3, 5]), (IMAGE, [6, 7])],
    "aten.adaptive_max_pool3d.default": [(VOLUME, [2, 3, 4])],
}
