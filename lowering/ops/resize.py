"""Upsampling and interpolation of [N, C, ...], one spatial dimension at a time.

Source indices and weights depend only on sizes: they are constants, computed by torch's formulas
(aten/src/ATen/native/UpSample.h) in float32, or in float64 for float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ...passes.mlir import stablehlo
from .. import build
from ..emit.context import Context
from ..registry import rule
from ..types import Value

Real = type[np.floating]


# -- source indices and weights ------------------------------------------------------------------------------------


def _ratio(
    size: int, count: int, scale: float | None, align_corners: bool = False, real: Real = np.float32
) -> np.floating:
    """Source elements per result element."""
    if align_corners:
        return real(size - 1) / real(count - 1) if count > 1 else real(0)
    return real(1.0 / scale) if scale and scale > 0 else real(size) / real(count)


def _source(size: int, count: int, scale: float | None, align_corners: bool, real: Real) -> np.ndarray:
    """Source coordinate of each result element [count]; may be negative or fractional."""
    ratio, at = _ratio(size, count, scale, align_corners, real), np.arange(count, dtype=real)
    return ratio * at if align_corners else ratio * (at + real(0.5)) - real(0.5)


Taps = tuple[np.ndarray, np.ndarray]
"""(source indices, their weights) of each result element, both [count, taps]. An index equal to the source's size reads 0."""


def _linear(size: int, count: int, scale: float | None, align_corners: bool, real: Real) -> Taps:
    """Two taps per result element, linearly weighted."""
    if size == count:  # for any scale; as in ATen, the second tap has weight 0, which turns an infinity into NaN
        return np.stack([np.arange(size)] * 2, 1), np.stack([np.ones(size, real), np.zeros(size, real)], 1)
    at = np.maximum(_source(size, count, scale, align_corners, real), real(0))
    first = np.minimum(at.astype(np.int64), size - 1)
    share = np.clip(at - first.astype(real), real(0), real(1))
    return np.stack([first, np.minimum(first + 1, size - 1)], 1), np.stack([real(1) - share, share], 1)


def _cubic(size: int, count: int, scale: float | None, align_corners: bool, real: Real) -> Taps:
    """Four taps per result element, weighted by Keys' kernel with a = -0.75."""
    at = _source(size, count, scale, align_corners, real)
    first = np.floor(at).astype(np.int64)
    share = np.clip(at - first.astype(real), real(0), real(1))
    distances = [share + real(1), share, real(1) - share, real(2) - share]
    places = np.clip(first[:, None] + np.arange(-1, 3), 0, size - 1)
    return places, np.stack([_keys(distance, -0.75) for distance in distances], 1)


def _keys(distance: np.ndarray, a: float) -> np.ndarray:
    """The cubic convolution kernel of Keys (1981) at non-negative distances."""
    x = np.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def _lanczos(distance: np.ndarray) -> np.ndarray:
    """The Lanczos kernel with a = 3."""
    return np.sinc(distance) * np.sinc(distance / 3) * (np.abs(distance) < 3)


FILTERS: dict[str, tuple[int, Callable[[np.ndarray], np.ndarray]]] = {
    "linear": (2, lambda distance: np.maximum(1 - np.abs(distance), 0)),
    "cubic": (4, lambda distance: _keys(distance, -0.5)),
    "lanczos": (6, _lanczos),
}
"""Antialiasing filters: (width at scale 1, weight as a function of distance)."""


def _antialiased(name: str) -> Callable[[int, int, float | None, bool, Real], Taps]:
    """Taps of a filter in FILTERS, widened by the scale when downsampling; weights are normalized."""
    width, weigh = FILTERS[name]

    def taps(size: int, count: int, scale: float | None, align_corners: bool, real: Real) -> Taps:
        ratio = _ratio(size, count, scale, align_corners, real)
        wide = max(ratio, real(1))
        support, center = real(width / 2) * wide, ratio * (np.arange(count, dtype=real) + real(0.5))
        start = np.maximum((center - support + real(0.5)).astype(np.int64), 0)
        stop = np.minimum((center + support + real(0.5)).astype(np.int64), size)
        places = start[:, None] + np.arange(max(int((stop - start).max()), 1))
        inside = places < stop[:, None]
        weights = weigh((places.astype(real) - center[:, None] + real(0.5)) / wide) * inside
        total = weights.sum(1, keepdims=True)
        return np.where(inside, places, size), (weights / np.where(total == 0, 1, total)).astype(real)

    return taps


def _resample(
    ctx: Context, self: Value, scales: Sequence[float | None], align_corners: bool, taps: Callable[..., Taps]
) -> Value:
    """Resamples each spatial dimension, from the last to the first, as a weighted sum of source elements.

    ATen skips dimensions of unchanged size, for any scale, when it processes dimensions separately (antialiasing, uint8);
    otherwise it sums over them too, where a weight of 0 turns an infinity into NaN.
    """
    if 0 in ctx.shape:
        return build.full(ctx.shape, ctx.dtype, 0)
    bytes_ = ctx.dtype is torch.uint8 and self.rank == 4
    real = np.float64 if bytes_ or ctx.dtype is torch.float64 else np.float32
    wide = torch.float64 if ctx.dtype is torch.float64 else torch.float32
    alone = bytes_ or taps not in (_linear, _cubic)
    value = self if bytes_ else build.convert(self, wide)
    for dim in reversed(range(2, self.rank)):
        if value.shape[dim] != ctx.shape[dim] or not alone:
            places, weights = taps(self.shape[dim], ctx.shape[dim], scales[dim - 2], align_corners, real)
            value = _weighted_bytes(value, dim, places, weights) if bytes_ else _weighted(value, dim, places, weights)
    if value.dtype != ctx.dtype and not ctx.dtype.is_floating_point:
        value = build.unary(stablehlo.round_nearest_even, value)
    return build.convert(value, ctx.dtype)


def _weighted(value: Value, dim: int, places: np.ndarray, weights: np.ndarray) -> Value:
    """Weighted sum of taps along `dim`; `places` and `weights` are [count, taps]."""
    if places.max() == value.shape[dim]:  # taps past the end read 0
        zero = build.full([*value.shape[:dim], 1, *value.shape[dim + 1 :]], value.dtype, 0)
        value = build.concatenate([value, zero], dim)
    taken = build.take(value, build.array(places, torch.int32), dim)
    product = build.multiply(
        taken, build.broadcast_in_dim(build.array(weights, value.dtype), taken.shape, [dim, dim + 1])
    )
    return build.reduce_with(build.add, product, 0, [dim + 1])


def _weighted_bytes(value: Value, dim: int, places: np.ndarray, weights: np.ndarray) -> Value:
    """`_weighted` for uint8, with 16-bit fixed-point weights and rounding after each dimension.

    As torch's compute_index_ranges_int16_weights: weights of an element repeated at the border are summed before they are rounded,
    and the largest weight, partial sums included, determines the number of fractional bits.
    """
    weights, largest = weights.copy(), weights[:, 0].max()
    for tap in range(1, weights.shape[1]):
        again = places[:, tap] == places[:, tap - 1]
        weights[again, tap] += weights[again, tap - 1]
        weights[again, tap - 1] = 0
        largest = max(largest, weights[:, tap].max())
    bits = next(bits for bits in range(23) if bits == 22 or 0.5 + largest * (1 << (bits + 1)) >= 1 << 15)
    fixed = np.trunc(weights.astype(np.float64) * (1 << bits) + np.where(weights < 0, -0.5, 0.5))
    total = _weighted(build.convert(value, torch.int32), dim, places, fixed)
    rounded = build.binary(
        stablehlo.shift_right_arithmetic,
        build.add(total, build.full_like(total, 1 << (bits - 1))),
        build.full_like(total, bits),
    )
    return build.convert(
        build.maximum(build.minimum(rounded, build.full_like(total, 255)), build.full_like(total, 0)), torch.uint8
    )


def _nearest(ctx: Context, self: Value, scales: Sequence[float | None], offset: float) -> Value:
    """Takes the source element at floor((index + offset) * ratio) along each spatial dimension of self [N, C, ...]."""
    if 0 in ctx.shape:
        return build.full(ctx.shape, ctx.dtype, 0)
    for dim in range(2, self.rank):
        size, count = self.shape[dim], ctx.shape[dim]
        at = _nearest_places(size, count, scales[dim - 2], offset, short=self.rank == 4 and not offset)
        if not np.array_equal(at, np.arange(size)):
            self = build.take(self, build.array(at, torch.int32), dim)
    return self


def _nearest_places(size: int, count: int, scale: float | None, offset: float, short: bool) -> np.ndarray:
    """int64 source indices [count]. short: 2-d nearest, whose kernel ignores the scale for equal and doubled sizes."""
    index = np.arange(count)
    if short and count == size:
        return index
    if short and count == 2 * size:
        return index >> 1
    ratio = _ratio(size, count, scale)
    at = np.floor((index.astype(np.float32) + np.float32(offset)) * ratio).astype(np.int64)
    return np.minimum(at, size - 1)


def _factors(scale_factors: Sequence[float] | None, rank: int) -> list[float | None]:
    """One scale factor per spatial dimension; None if not given."""
    return list(scale_factors) if scale_factors else [None] * rank


# -- nearest -------------------------------------------------------------------------------------------------------


@rule("aten.upsample_nearest1d.vec", "aten.upsample_nearest2d.vec", "aten.upsample_nearest3d.vec")
def upsample_nearest(
    ctx: Context, input: Value, output_size: Sequence[int] | None, scale_factors: Sequence[float] | None
) -> Value:
    return _nearest(ctx, input, _factors(scale_factors, input.rank - 2), 0)


@rule("aten._upsample_nearest_exact1d.vec", "aten._upsample_nearest_exact2d.vec", "aten._upsample_nearest_exact3d.vec")
def upsample_nearest_exact(
    ctx: Context, input: Value, output_size: Sequence[int] | None, scale_factors: Sequence[float] | None
) -> Value:
    return _nearest(ctx, input, _factors(scale_factors, input.rank - 2), 0.5)


@rule("aten.upsample_nearest1d.default")
def upsample_nearest1d(ctx: Context, self: Value, output_size: Sequence[int], scales: float | None = None) -> Value:
    return _nearest(ctx, self, [scales], 0)


@rule("aten.upsample_nearest2d.default")
def upsample_nearest2d(
    ctx: Context, self: Value, output_size: Sequence[int], scales_h: float | None = None, scales_w: float | None = None
) -> Value:
    return _nearest(ctx, self, [scales_h, scales_w], 0)


@rule("aten.upsample_nearest3d.default")
def upsample_nearest3d(
    ctx: Context,
    self: Value,
    output_size: Sequence[int],
    scales_d: float | None = None,
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Value:
    return _nearest(ctx, self, [scales_d, scales_h, scales_w], 0)


@rule("aten._upsample_nearest_exact1d.default")
def upsample_nearest_exact1d(
    ctx: Context, self: Value, output_size: Sequence[int], scales: float | None = None
) -> Value:
    return _nearest(ctx, self, [scales], 0.5)


@rule("aten._upsample_nearest_exact2d.default")
def upsample_nearest_exact2d(
    ctx: Context, self: Value, output_size: Sequence[int], scales_h: float | None = None, scales_w: float | None = None
) -> Value:
    return _nearest(ctx, self, [scales_h, scales_w], 0.5)


@rule("aten._upsample_nearest_exact3d.default")
def upsample_nearest_exact3d(
    ctx: Context,
    self: Value,
    output_size: Sequence[int],
    scales_d: float | None = None,
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Value:
    return _nearest(ctx, self, [scales_d, scales_h, scales_w], 0.5)


# -- linear, cubic, antialiased ------------------------------------------------------------------------------------


@rule("aten.upsample_linear1d.vec", "aten.upsample_bilinear2d.vec", "aten.upsample_trilinear3d.vec")
def upsample_linear(
    ctx: Context,
    input: Value,
    output_size: Sequence[int] | None,
    align_corners: bool,
    scale_factors: Sequence[float] | None,
) -> Value:
    return _resample(ctx, input, _factors(scale_factors, input.rank - 2), align_corners, _linear)


@rule("aten.upsample_bicubic2d.vec")
def upsample_bicubic(
    ctx: Context,
    input: Value,
    output_size: Sequence[int] | None,
    align_corners: bool,
    scale_factors: Sequence[float] | None,
) -> Value:
    return _resample(ctx, input, _factors(scale_factors, 2), align_corners, _cubic)


@rule("aten.upsample_linear1d.default")
def upsample_linear1d(
    ctx: Context, self: Value, output_size: Sequence[int], align_corners: bool, scales: float | None = None
) -> Value:
    return _resample(ctx, self, [scales], align_corners, _linear)


@rule("aten.upsample_bilinear2d.default")
def upsample_bilinear2d(
    ctx: Context,
    self: Value,
    output_size: Sequence[int],
    align_corners: bool,
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Value:
    return _resample(ctx, self, [scales_h, scales_w], align_corners, _linear)


@rule("aten.upsample_trilinear3d.default")
def upsample_trilinear3d(
    ctx: Context,
    self: Value,
    output_size: Sequence[int],
    align_corners: bool,
    scales_d: float | None = None,
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Value:
    return _resample(ctx, self, [scales_d, scales_h, scales_w], align_corners, _linear)


@rule("aten.upsample_bicubic2d.default")
def upsample_bicubic2d(
    ctx: Context,
    self: Value,
    output_size: Sequence[int],
    align_corners: bool,
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Value:
    return _resample(ctx, self, [scales_h, scales_w], align_corners, _cubic)


@rule("aten._upsample_bilinear2d_aa.default")
def upsample_bilinear2d_aa(
    ctx: Context,
    self: Value,
    output_size: Sequence[int],
    align_corners: bool,
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Value:
    return _resample(ctx, self, [scales_h, scales_w], align_corners, _antialiased("linear"))


@rule("aten._upsample_bicubic2d_aa.default")
def upsample_bicubic2d_aa(
    ctx: Context,
    self: Value,
    output_size: Sequence[int],
    align_corners: bool,
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Value:
    return _resample(ctx, self, [scales_h, scales_w], align_corners, _antialiased("cubic"))


@rule("aten._upsample_lanczos2d_aa.default")
def upsample_lanczos2d_aa(
    ctx: Context,
    self: Value,
    output_size: Sequence[int],
    align_corners: bool,
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Value:
    return _resample(ctx, self, [scales_h, scales_w], align_corners, _antialiased("lanczos"))
