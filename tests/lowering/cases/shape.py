"""Cases of the rules of lowering/ops/shape.py: argument tuples by overload; a dict at the end of one holds keyword arguments."""

from __future__ import annotations

import torch

from cases.operands import IMAGE, I, b, f, i

CASES: dict[str, list[tuple]] = {
    "aten.t.default": [(f(2, 3),), (f(4),), (f(),)],
    "aten.t_copy.default": [(f(2, 3),), (f(4),)],
    "aten.squeeze.default": [(f(1, 3, 1),), (f(),)],
    "aten.squeeze_copy.default": [(f(1, 3, 1),)],
    **{
        f"aten.{name}.default": [(f(2, 3), [3, 2]), (f(2, 3), [-1]), (f(0, 3), [3, 0])]
        for name in ("view", "_unsafe_view", "view_copy", "reshape")
    },
    **{f"aten.{name}.default": [(f(2, 3), [3, 2], [2, 1])] for name in ("_reshape_alias", "_reshape_alias_copy")},
    **{
        f"aten.{name}.dim": [(f(1, 3, 1), 0), (f(1, 3, 1), 1), (f(1, 3), -2), (f(), 0)]
        for name in ("squeeze", "squeeze_copy")
    },
    **{f"aten.{name}.dims": [(f(1, 3, 1), [0, -1]), (f(1, 3, 1), [])] for name in ("squeeze", "squeeze_copy")},
    **{f"aten.{name}.default": [(f(2, 3), 0), (f(2, 3), -1), (f(), 0)] for name in ("unsqueeze", "unsqueeze_copy")},
    "aten.clone.default": [(IMAGE, {"memory_format": torch.channels_last}), (f(2, 3).t(),)],
    "aten.contiguous.default": [(f(2, 3).t(),)],
    "prims.copy_strided.default": [(f(2, 3), [1, 2])],
    "aten.copy.default": [(f(2, 3), f(3)), (I, f(3, 4)), (b(2, 3), f(2, 3))],
    **{
        f"aten.{name}.default": [(f(3), [2, 3]), (f(2, 1), [-1, 4]), (f(1), [0]), (f(), [2, 2])]
        for name in ("expand", "expand_copy")
    },
    "aten.repeat.default": [(f(2, 3), [2, 1]), (f(3), [2, 2]), (f(3), [0]), (f(), [3]), (b(2), [2])],
    "aten.repeat_interleave.self_int": [(f(2, 3), 2), (f(2, 3), 2, -1), (f(2, 3), 0, 0)],
    **{
        f"aten.{name}.default": [(f(2, 3, 4), [2, 0, 1]), (f(2, 3, 4), [-1, 1, 0]), (f(), [])]
        for name in ("permute", "permute_copy")
    },
    **{f"aten.{name}.int": [(f(2, 3, 4), 0, -1), (f(), 0, -1)] for name in ("transpose", "transpose_copy")},
    "aten.flip.default": [(f(2, 3), [0]), (f(2, 3), [-1, 0]), (f(2, 3), []), (f(), [])],
    "aten.roll.default": [
        (f(2, 3), [1]),
        (f(2, 3), [1, -2], [0, 1]),
        (f(2, 3), [7], [-1]),
        (f(0, 3), [1], [0]),
        (f(), [1]),
    ],
    **{
        f"aten.{name}.Tensor": [
            (f(5, 4), 0, 1, 4),
            (f(5, 4), -1, -3, 9223372036854775807),
            (f(5, 4), 0, 4, 2),
            (f(5, 4), 0, 0, 5, 2),
            (f(5, 4), 0, -100, 100, 3),
        ]
        for name in ("slice", "slice_copy")
    },
    **{
        f"aten.{name}.default": [(f(5, 4), 0, 1, 3), (f(5, 4), -1, -2, 2), (f(5, 4), 0, 5, 0)]
        for name in ("narrow", "narrow_copy")
    },
    **{f"aten.{name}.int": [(f(5, 4), 0, 2), (f(5, 4), -1, -1)] for name in ("select", "select_copy")},
    **{
        f"aten.{name}.default": [(f(5, 4), [1, 4], 0), (f(5, 4), [2, 0, 2], -1)]
        for name in ("split_with_sizes", "split_with_sizes_copy", "unsafe_split_with_sizes")
    },
    **{f"aten.{name}.Tensor": [(f(5, 4), 2), (f(5, 4), 3, -1)] for name in ("split", "split_copy", "unsafe_split")},
    **{f"aten.{name}.default": [(f(5, 4), 2), (f(5, 4), 3, -1)] for name in ("chunk", "unsafe_chunk")},
    **{f"aten.{name}.int": [(f(3, 2),), (f(3, 2), -1)] for name in ("unbind", "unbind_copy")},
    **{
        f"aten.{name}.default": [(f(3, 4),), (f(3, 4), 1), (f(3, 4), -2), (f(2, 3, 4), 1, -1, 0), (f(3, 4), 7)]
        for name in ("diagonal", "diagonal_copy")
    },
    **{
        f"aten.{name}.default": [
            (f(3, 7), 1, 3, 2),
            (f(9), 0, 2, 1),
            (f(3, 7), 0, 3, 1),
            (f(), 0, 1, 1),
            (f(8), 0, 4, 4),
        ]
        for name in ("unfold", "unfold_copy")
    },
    "aten.cat.default": [
        ([f(2, 3), f(1, 3)],),
        ([f(2, 3), f(2, 1)], -1),
        ([f(2, 3), i(1, 3)],),
        ([f(0), f(2, 3)],),
        ([b(2), i(2)],),
        ([f(2, 0), f(2, 0)], 1),
    ],
    "aten.stack.default": [([f(2, 3), f(2, 3)],), ([f(2), i(2)], -1), ([f(), f()],)],
    "aten.constant_pad_nd.default": [
        (f(2, 3), [1, 2]),
        (f(2, 3), [1, -1, -1, 2], 5.0),
        (i(3), [2, 0], 7),
        (b(3), [1, 1], True),
        (f(0, 2), [0, 0, 1, 1]),
    ],
    **{
        f"aten.{name}.default": [(f(3, 4), k) for k in (0, 1, -2, 9)] + [(f(2, 3, 3), -1), (b(3, 3),), (i(3, 0),)]
        for name in ("tril", "triu")
    },
}
