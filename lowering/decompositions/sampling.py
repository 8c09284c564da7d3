"""Decomposes sampling grids, sampling of volumes, and one upsampling op with scale factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def grid_sampler_3d(
    input: Tensor, grid: Tensor, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> Tensor:
    """input [N, C, D, H, W], grid [N, D', H', W', 3] of (x, y, z) in -1 .. 1. Modes: 0 trilinear, 1 nearest; padding: 0 zeros,
    1 border, 2 reflection. Returns [N, C, D', H', W']; half precision is computed in float32."""
    dtype = input.dtype
    if dtype in (torch.bfloat16, torch.float16):
        input, grid = input.float(), grid.float()
    sizes = input.shape[:1:-1]  # W, H, D
    points = [_unnormalized(grid[..., index], size, padding_mode, align_corners) for index, size in enumerate(sizes)]
    if interpolation_mode == 1:
        return _voxels(input, [torch.round(point) for point in points]).to(dtype)
    lower = [torch.floor(point) for point in points]
    total = None
    for corner in range(8):
        offsets = [(corner >> index) & 1 for index in range(3)]
        at = [low + offset for low, offset in zip(lower, offsets, strict=True)]
        weight = torch.ones_like(points[0])
        for point, low, offset in zip(points, lower, offsets, strict=True):
            fraction = point - low
            weight = weight * (fraction if offset else 1 - fraction)
        part = _voxels(input, at) * weight.unsqueeze(1)
        total = part if total is None else total + part
    assert total is not None
    return total.to(dtype)


def _unnormalized(coordinate: Tensor, size: int, padding_mode: int, align_corners: bool) -> Tensor:
    """Pixel coordinate for a normalized one in -1 .. 1, moved into the volume by border or reflection padding."""
    point = (coordinate + 1) / 2 * (size - 1) if align_corners else ((coordinate + 1) * size - 1) / 2
    if padding_mode == 2:
        low, high = (0, 2 * (size - 1)) if align_corners else (-1, 2 * size - 1)
        if low == high:
            point = torch.zeros_like(point)
        else:
            smallest, span = low / 2, (high - low) / 2
            distance = (point - smallest).abs()
            extra = torch.fmod(distance, span)
            flips = torch.floor(distance / span)
            point = torch.where(torch.fmod(flips, 2) == 0, extra + smallest, span - extra + smallest)
    return point if padding_mode == 0 else torch.clamp(point, 0, size - 1)


def _voxels(input: Tensor, at: Sequence[Tensor]) -> Tensor:
    """The elements at integral coordinates (x, y, z), zero outside the volume: [N, C, D', H', W']."""
    sizes = input.shape[:1:-1]
    inside = torch.ones_like(at[0], dtype=torch.bool)
    places = []
    for place, size in zip(at, sizes, strict=True):
        inside = inside & (place >= 0) & (place < size)
        places.append(torch.where((place >= 0) & (place < size), place, 0).to(torch.int64))
    x, y, z = places
    batch = torch.arange(input.shape[0]).reshape(-1, 1, 1, 1)
    found = input.permute(0, 2, 3, 4, 1)[batch, z, y, x].permute(0, 4, 1, 2, 3)
    return torch.where(inside.unsqueeze(1), found, torch.zeros([], dtype=input.dtype))


def upsample_linear1d(
    input: Tensor, output_size: Sequence[int] | None, align_corners: bool, scale_factors: Sequence[float] | None
) -> Tensor:
    """`upsample_linear1d.vec` on symbolic sizes: ATen's computes the output size from the input's as a Python int."""
    if output_size is not None or scale_factors is None:
        size, scale = output_size, None
    else:
        scale = scale_factors[0]
        size = [torch.sym_int(input.shape[2] * scale)]
    return torch.ops.aten.upsample_linear1d.default(input, size, align_corners, scale)


def affine_grid_generator(theta: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """theta [N, 2, 3] or [N, 3, 4] -> sampling grid [N, *spatial, 2 or 3].

    torch's decomposition creates a tensor from a Python number for an axis of size 1.
    """
    axes = [_centers(length, align_corners, theta) for length in reversed(size[2:])]
    spatial = list(size[2:])
    last = len(spatial) - 1
    coordinates = [
        axis.reshape([length if place == last - index else 1 for place, length in enumerate(spatial)]).expand(spatial)
        for index, (axis, length) in enumerate(zip(axes, reversed(spatial), strict=True))
    ]
    base = torch.stack([*coordinates, torch.ones_like(coordinates[0])], -1).reshape(1, -1, len(spatial) + 1)
    return torch.matmul(base, theta.mT).reshape([size[0], *spatial, len(spatial)])


def _centers(length: int, align_corners: bool, theta: Tensor) -> Tensor:
    """[length] pixel centers in -1 .. 1; the outermost are at -1 and 1 with align_corners. A single pixel is at 0."""
    if length == 1:
        return torch.zeros(1, dtype=theta.dtype, device=theta.device)
    centers = torch.linspace(-1, 1, length, dtype=theta.dtype, device=theta.device)
    return centers if align_corners else centers * (length - 1) / length
