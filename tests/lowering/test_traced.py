"""Functions captured by make_fx, the way of vLLM's models: the same ops reach their rules as by export."""

from __future__ import annotations

import torch
from differential import agree, eager, execute, traced
from torch.nn.functional import interpolate


def test_upsampling_is_not_taken_apart_by_torchs_python_kernels() -> None:
    def resized(x: torch.Tensor, image: torch.Tensor) -> list[torch.Tensor]:
        same = interpolate(x, size=(3, 4), mode="bilinear")
        return [
            same,
            interpolate(x, scale_factor=1.5, mode="bicubic"),
            interpolate(image, size=(5, 9), mode="bilinear"),
        ]

    kernels = dict(torch.ops.aten.upsample_bilinear2d.vec.py_kernels)
    x = torch.randn(1, 2, 3, 4)
    x[0, 0, 1, 1] = float("inf")
    image = torch.randint(0, 256, (1, 3, 6, 7), dtype=torch.uint8)
    agree(eager(resized, [x, image]), execute(traced(resized, [x, image]), [x, image]))
    assert kernels and torch.ops.aten.upsample_bilinear2d.vec.py_kernels == kernels
