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


def test_linspace_of_integers_cuts_ends_off_that_are_tensors() -> None:
    def spaced(start: torch.Tensor, end: torch.Tensor) -> list[torch.Tensor]:
        sizes = [torch.linspace(start, end, steps, dtype=torch.int64) for steps in (0, 1, 7, 50)]
        return [*sizes, torch.linspace(-3, end, 8, dtype=torch.int8), torch.linspace(start, 2.7, 5)]

    ends = [torch.tensor(4.3), torch.tensor(-3.6)]
    agree(eager(spaced, ends), execute(traced(spaced, ends), ends))
