"""Ops written in terms of other ATen ops, where torch has no decomposition or none that stays functional and exportable.

Each function has the parameters of its ATen schema. They run in eager torch, so tests compare them with the op directly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, prod
from typing import Any

import torch
import torch.nn.modules.linear_cross_entropy  # registers its ops
from torch import Tensor
from torch._prims_common import is_contiguous_or_false
from torch.utils._python_dispatch import _disable_current_modes

from ..errors import LoweringError
from . import histograms
from .attention import scaled_dot_product_attention

aten = torch.ops.aten

# -- strides -------------------------------------------------------------------------------------------------------


def as_strided(self: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> Tensor:
    """Elements picked from the operand in the order in which they lie in memory."""
    flat = _in_memory_order(self)
    start = 0 if storage_offset is None else storage_offset - self.storage_offset()
    if not size:
        return flat[start].clone()
    return flat[_places(self, size, stride) + start]


def as_strided_scatter(
    self: Tensor, src: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Tensor:
    """The operand with the picked elements replaced by `src`."""
    start = 0 if storage_offset is None else storage_offset - self.storage_offset()
    place = torch.add(_places(self, size, stride), start).reshape(-1)  # type: ignore[arg-type]
    flat = _in_memory_order(self).index_put([place], src.reshape(-1))
    order = _memory_order(self)
    back = [order.index(dim) for dim in range(self.ndim)]
    return flat.reshape([self.shape[dim] for dim in order]).permute(back).contiguous()


def _places(self: Tensor, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    place = torch.zeros([1] * len(size), dtype=torch.int64, device=self.device)
    for dim, (count, step) in enumerate(zip(size, stride, strict=True)):
        shape = [1] * len(size)
        shape[dim] = count
        steps = torch.mul(torch.arange(count, device=self.device), step)
        place = place + steps.reshape(shape)
    return place


def _memory_order(self: Tensor) -> list[int]:
    """The dimensions from the largest stride to the smallest; what has gaps or overlaps is refused."""
    order = sorted(range(self.ndim), key=lambda dim: (-self.stride()[dim], dim))
    expected = 1
    for dim in reversed(order):
        if self.shape[dim] != 1 and self.stride(dim) != expected and self.numel():
            raise LoweringError(
                f"as_strided of a tensor of shape {list(self.shape)} and strides {list(self.stride())}, which is a part of "
                "another one's memory",
                next_step="take the part with slicing and views, or call .contiguous() first",
            )
        expected *= self.shape[dim]
    return order


def _in_memory_order(self: Tensor) -> Tensor:
    return self.permute(_memory_order(self)).reshape(-1)


def view(self: Tensor, size: Sequence[int]) -> Any:
    """A view, or a copy where an op that was taken apart has left other strides than those the model's view counts on."""
    if is_contiguous_or_false(self) or _viewable(self, size):
        return NotImplemented
    return self.clone(memory_format=torch.contiguous_format).view(size)


def _viewable(self: Tensor, size: Sequence[int]) -> bool:
    with _disable_current_modes():
        try:
            torch.empty_strided(self.shape, self.stride(), dtype=self.dtype, device="meta").view(size)
        except (RuntimeError, ValueError):
            return False
    return True


def resize(self: Tensor, size: Sequence[int], *, memory_format: Any = None) -> Tensor:
    """The first elements in row-major order; what is added has no promised value, and is zero here."""
    count, flat = prod(size), self.reshape(-1)
    if count > flat.shape[0]:
        flat = torch.cat([flat, flat.new_zeros(count - flat.shape[0])])
    return flat[:count].reshape(size)


# -- distances and products ----------------------------------------------------------------------------------------


def cdist_forward(x1: Tensor, x2: Tensor, p: float, compute_mode: int | None) -> Tensor:
    return _distance((x1.unsqueeze(-2) - x2.unsqueeze(-3)).abs(), p)


def pdist_forward(self: Tensor, p: float = 2.0) -> Tensor:
    rows = self.shape[0]
    first, second = torch.triu_indices(rows, rows, 1, device=self.device).unbind(0)
    return _distance((self[first] - self[second]).abs(), p)


def _distance(difference: Tensor, p: float) -> Tensor:
    if difference.shape[-1] == 0:
        return difference.sum(-1)
    if p == 0:
        return (difference != 0).to(difference.dtype).sum(-1)
    if p == 1:
        return difference.sum(-1)
    if p == 2:
        return (difference * difference).sum(-1).sqrt()
    if p == inf:
        return difference.amax(-1)
    return difference.pow(p).sum(-1).pow(1 / p)


def trilinear(
    i1: Tensor, i2: Tensor, i3: Tensor, expand1: Sequence[int], expand2: Sequence[int], expand3: Sequence[int],
    sumdim: Sequence[int], unroll_dim: int = 1,
) -> Tensor:  # fmt: skip
    """The product of three tensors, each with dimensions of size 1 put in, summed over `sumdim`."""
    for dim in expand1:
        i1 = i1.unsqueeze(dim)
    for dim in expand2:
        i2 = i2.unsqueeze(dim)
    for dim in expand3:
        i3 = i3.unsqueeze(dim)
    wide = torch.float32 if i1.dtype in (torch.bfloat16, torch.float16) else i1.dtype
    product = i1.to(wide) * i2.to(wide) * i3.to(wide)
    return (product.sum(list(sumdim)) if len(sumdim) else product).to(i1.dtype)


def pinv(self: Tensor, *, atol: Tensor | None = None, rtol: Tensor | None = None, hermitian: bool = False) -> Tensor:
    """The pseudoinverse; singular values up to max(atol, rtol * largest) count as zero."""
    if self.numel() == 0:
        return self.new_zeros([*self.shape[:-2], self.shape[-1], self.shape[-2]])
    m, n = self.shape[-2:]
    eps = torch.finfo(self.dtype).eps * max(m, n)
    if hermitian:
        values, vectors = torch.linalg.eigh(self)
        left, sizes, right, signs = vectors, values.abs(), vectors.mT, values.sign()
    else:
        left, sizes, right = torch.linalg.svd(self, full_matrices=False)
        signs = torch.ones_like(sizes)
    absolute = torch.zeros_like(sizes[..., :1]) if atol is None else atol.unsqueeze(-1).to(sizes.dtype)
    default = torch.full_like(absolute, eps)
    relative = default if rtol is None and atol is None else torch.zeros_like(absolute)
    if rtol is None and atol is not None:
        relative = torch.where(absolute > 0, 0.0, default)
    elif rtol is not None:
        relative = rtol.unsqueeze(-1).to(sizes.dtype)
    kept = sizes > torch.maximum(absolute, relative * sizes.amax(-1, keepdim=True))
    inverse = torch.where(kept, signs / torch.where(kept, sizes, 1.0), 0.0)
    return (right.mT * inverse.unsqueeze(-2)) @ left.mT


# -- gradients of pools and convolutions ---------------------------------------------------------------------------


def max_pool2d_backward(
    grad_output: Tensor, self: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], ceil_mode: bool, indices: Tensor,
) -> Tensor:  # fmt: skip
    """Each gradient is added where its maximum was."""
    lead = self.shape[:-2]
    flat = grad_output.new_zeros([*lead, self.shape[-2] * self.shape[-1]])
    return flat.scatter_add(-1, indices.flatten(-2), grad_output.flatten(-2)).reshape(self.shape)


def avg_pool2d_backward(
    grad_output: Tensor, self: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    ceil_mode: bool, count_include_pad: bool, divisor_override: int | None,
) -> Tensor:  # fmt: skip
    """Rᵀ g C with R and C saying which rows and columns a window covers."""
    wide = torch.float32 if self.dtype in (torch.bfloat16, torch.float16) else self.dtype
    grad, covers = grad_output.to(wide), []
    for index, dim in enumerate((-2, -1)):
        kernel = kernel_size[index % len(kernel_size)]
        step = stride[index % len(stride)] if len(stride) else kernel
        pad, size, count = padding[index % len(padding)], self.shape[dim], grad_output.shape[dim]
        start = torch.arange(count) * step - pad
        end = torch.clamp(start + kernel, max=size + pad)
        place = torch.arange(size)
        cover = ((place >= start.unsqueeze(1)) & (place < end.unsqueeze(1))).to(wide)
        counted = end - start if count_include_pad else cover.sum(1).to(torch.int64)
        if divisor_override is None:
            grad = grad / counted.to(wide).reshape([-1, 1] if dim == -2 else [-1])
        covers.append(cover)
    if divisor_override is not None:
        grad = grad / divisor_override
    return (covers[0].mT @ grad @ covers[1]).to(self.dtype)


def adaptive_avg_pool2d_backward(grad_output: Tensor, self: Tensor) -> Tensor:
    wide = torch.float32 if self.dtype in (torch.bfloat16, torch.float16) else self.dtype
    covers = []
    for dim in (-2, -1):
        size, count = self.shape[dim], grad_output.shape[dim]
        steps = torch.arange(count)
        start, end = steps * size // count, -((-(steps + 1) * size) // count)
        place = torch.arange(size)
        cover = ((place >= start.unsqueeze(1)) & (place < end.unsqueeze(1))).to(wide)
        covers.append(cover / cover.sum(1, keepdim=True))
    return (covers[0].mT @ grad_output.to(wide) @ covers[1]).to(self.dtype)


def convolution_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, bias_sizes: Sequence[int] | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    rank = input.ndim - 2
    stride, padding, dilation, output_padding = (
        list(amounts) * (rank if len(amounts) == 1 else 1) for amounts in (stride, padding, dilation, output_padding)
    )
    to_input = to_weight = to_bias = None
    if output_mask[0] and transposed:
        to_input = aten.convolution(grad_output, weight, None, stride, padding, dilation, False, [0] * rank, groups)
    elif output_mask[0]:
        reach = [
            (size - 1) * step - 2 * pad + dilate * (kernel - 1) + 1
            for size, step, pad, dilate, kernel in zip(
                grad_output.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True
            )
        ]
        extra = [size - made for size, made in zip(input.shape[2:], reach, strict=True)]
        to_input = aten.convolution(grad_output, weight, None, stride, padding, dilation, True, extra, groups)
    if output_mask[1]:
        outer, inner = (grad_output, input) if transposed else (input, grad_output)
        parts = [
            _kernel_gradient(a, b, weight.shape[2:], stride, padding, dilation)
            for a, b in zip(outer.chunk(groups, 1), inner.chunk(groups, 1), strict=True)
        ]
        to_weight = torch.cat(parts, 0)
    if output_mask[2]:
        to_bias = grad_output.sum([0, *range(2, grad_output.ndim)])
    return to_input, to_weight, to_bias


def _kernel_gradient(
    outer: Tensor, inner: Tensor, kernel: Sequence[int], stride: Any, padding: Any, dilation: Any
) -> Tensor:
    """[inner channels, outer channels, *kernel]: the batch is what is summed over, so it takes the channels' place."""
    rank = outer.ndim - 2
    made = aten.convolution(
        outer.transpose(0, 1), inner.transpose(0, 1), None, dilation, padding, stride, False, [0] * rank, 1
    )
    for dim, size in enumerate(kernel):
        made = made.narrow(dim + 2, 0, size)
    return made.transpose(0, 1)


def fractional_max_pool(
    self: Tensor, kernel_size: Sequence[int], output_size: Sequence[int], random_samples: Tensor
) -> tuple[Tensor, Tensor]:
    """Windows at pseudorandom starts (Graham 2014), as ATen places them; indices count over the flattened sizes."""
    rank = len(output_size)
    batched = self if self.ndim == rank + 2 else self.unsqueeze(0)
    lead, sizes = batched.shape[:2], batched.shape[2:]
    samples = random_samples[: lead[0]]  # ATen takes more rows than the batch has
    places: Tensor = torch.zeros([1] * (2 + 2 * rank), dtype=torch.int64)
    stride = 1
    for dim in reversed(range(rank)):
        # the samples are ordered from the last dimension to the first in 2-d, and from the first in 3-d
        sample = samples[..., (rank - 1 - dim) if rank == 2 else dim]
        start = _fractional_starts(sample, sizes[dim], output_size[dim], kernel_size[dim])
        window = start.unsqueeze(-1) + torch.arange(kernel_size[dim])
        shape = [*lead] + [1] * (2 * rank)
        shape[2 + dim], shape[2 + rank + dim] = output_size[dim], kernel_size[dim]
        places = places + window.reshape(shape) * stride
        stride = stride * sizes[dim]
    flat_places = places.flatten(2 + rank).flatten(2, 1 + rank)  # [N, C, outputs, window]
    flat = batched.flatten(2).unsqueeze(2).expand(*lead, flat_places.shape[2], -1)
    values, chosen = torch.gather(flat, 3, flat_places).max(-1)
    indices = torch.gather(flat_places, 3, chosen.unsqueeze(-1)).squeeze(-1)
    shape = [*self.shape[: self.ndim - rank], *output_size]
    return values.reshape(shape), indices.reshape(shape)


def _fractional_starts(sample: Tensor, size: int, count: int, kernel: int) -> Tensor:
    """int64 [..., count]."""
    last = torch.full((*sample.shape, 1), size - kernel, dtype=torch.int64)
    if count == 1:
        return last
    alpha = (size - kernel) / (count - 1)
    steps = torch.arange(count - 1, dtype=sample.dtype)
    inner = ((steps + sample.unsqueeze(-1)) * alpha).to(torch.int64) - (sample.unsqueeze(-1) * alpha).to(torch.int64)
    return torch.cat([inner, last], -1)


# -- batch norm in training ----------------------------------------------------------------------------------------


def _normalized(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, statistics: Sequence[Tensor | None], eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(result, mean and 1 / standard deviation as ATen saves them, variance in the wide dtype). ATen's CPU kernel normalizes with the
    saved ones, which are rounded to 16 bits unless a parameter is float32."""
    wide = torch.float32 if input.dtype in (torch.bfloat16, torch.float16) else input.dtype
    given = [one for one in (weight, bias, *statistics) if one is not None]
    saved = wide if any(one.dtype is torch.float32 for one in given) else input.dtype
    dims, values = [dim for dim in range(input.ndim) if dim != 1], input.to(wide)
    mean, variance = values.mean(dims), values.var(dims, unbiased=False)
    means, scales = mean.to(saved), (1 / torch.sqrt(variance + eps)).to(saved)
    alpha = scales.to(wide) if weight is None else scales.to(wide) * weight.to(wide)
    beta = -means.to(wide) * alpha if bias is None else bias.to(wide) - means.to(wide) * alpha
    shape = [1, -1, *[1] * (input.ndim - 2)]
    return (values * alpha.reshape(shape) + beta.reshape(shape)).to(input.dtype), means, scales, variance


def _moved(running: Tensor, new: Tensor, momentum: float) -> Tensor:
    return (momentum * new.to(torch.promote_types(new.dtype, torch.float32)) + (1 - momentum) * running).to(
        running.dtype
    )


def batch_norm_functional(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, training: bool,
    momentum: float, eps: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """(result, mean, 1 / standard deviation, the new running mean, the new running variance)."""
    if not training:
        result = aten._native_batch_norm_legit_no_training(
            input, weight, bias, running_mean, running_var, momentum, eps
        )[0]
        return result, input.new_empty([0]), input.new_empty([0]), running_mean.clone(), running_var.clone()
    result, mean, scale, variance = _normalized(input, weight, bias, (running_mean, running_var), eps)
    count = input.numel() // input.shape[1]
    unbiased = variance * (count / (count - 1) if count > 1 else inf)
    return result, mean, scale, _moved(running_mean, mean, momentum), _moved(running_var, unbiased, momentum)


def batch_norm_no_stats(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool, momentum: float, eps: float
) -> tuple[Tensor, ...]:
    return _normalized(input, weight, bias, (), eps)[:3]


def batch_norm_with_update_functional(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor,
    momentum: float, eps: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    result, mean, scale, *updated = batch_norm_functional(
        input, weight, bias, running_mean, running_var, True, momentum, eps
    )
    return result, mean, scale, input.new_empty([0], dtype=torch.uint8), *updated


# -- losses --------------------------------------------------------------------------------------------------------


def linear_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None, weight: Tensor | None, reduction: str,
    ignore_index: int, label_smoothing: float, batch_chunk_size: int, acc_policy: str, acc_dtype: torch.dtype,
    allow_retain_graph: bool, compute_input_grad: bool, compute_linear_weight_grad: bool, compute_linear_bias_grad: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """(loss, and the gradients to input, weight and bias where they are asked for): torch computes both chunk by chunk, here in one."""
    x, matrix = input.to(acc_dtype), linear_weight.to(acc_dtype)
    scores, wanted, mass = _scores_and_targets(x, matrix, target, linear_bias, weight, ignore_index, label_smoothing)
    loss = -(wanted * scores).sum()
    scale = 1 / mass.sum() if reduction == "mean" else torch.ones_like(loss)
    slope = (wanted.sum(-1, keepdim=True) * scores.exp() - wanted) * scale
    nothing = input.new_empty([0, 0])
    return (
        (loss * scale).to(input.dtype),
        (slope @ matrix).to(input.dtype) if compute_input_grad else nothing,
        (slope.mT @ x).to(input.dtype) if compute_linear_weight_grad else nothing.clone(),
        slope.sum(0).to(input.dtype) if compute_linear_bias_grad else input.new_empty([0]),
    )


def linear_cross_entropy_no_reduction(
    input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None, weight: Tensor | None,
    ignore_index: int, batch_chunk_size: int, acc_policy: str, acc_dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    scores, wanted, _ = _scores_and_targets(
        input.to(acc_dtype), linear_weight.to(acc_dtype), target, linear_bias, weight, ignore_index, 0.0
    )
    return -(wanted * scores).sum(-1).to(input.dtype)


def _scores_and_targets(
    x: Tensor, matrix: Tensor, target: Tensor, bias: Tensor | None, weight: Tensor | None, ignore_index: int,
    smoothing: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(log probabilities [N, C], the weights with which they count [N, C], the weight of each row's target [N])."""
    logits = x @ matrix.mT
    logits = logits if bias is None else logits + bias.to(x.dtype)
    classes = matrix.shape[0]
    weights = torch.ones([classes], dtype=x.dtype) if weight is None else weight.to(x.dtype)
    counted = target != ignore_index
    chosen = (torch.arange(classes) == torch.where(counted, target, 0).unsqueeze(-1)).to(x.dtype) * weights
    mass = torch.where(counted, chosen.sum(-1), 0.0)
    wanted = (1 - smoothing) * chosen + (smoothing / classes) * weights
    return torch.log_softmax(logits, -1), torch.where(counted.unsqueeze(-1), wanted, 0.0), mass


# -- sampling of volumes -------------------------------------------------------------------------------------------


def grid_sampler_3d(
    input: Tensor, grid: Tensor, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> Tensor:
    """input [N, C, D, H, W], grid [N, D', H', W', 3] of (x, y, z) in -1 .. 1. Modes: 0 trilinear, 1 nearest; padding: 0 zeros,
    1 border, 2 reflection. Places and weights of small floats are computed in float32."""
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
    """The elements at whole places (x, y, z), zero outside: [N, C, D', H', W']."""
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


# -- bits and segments -------------------------------------------------------------------------------------------------


def hash_tensor(self: Tensor, dim: Sequence[int] = (), *, keepdim: bool = False, mode: int = 0) -> Tensor:
    """The exclusive or of all bits (mode 0), of floats as float64, of integers as int64."""
    wide = self.to(torch.float64).view(torch.int64) if self.dtype.is_floating_point else self.to(torch.int64)
    dims = [one % max(self.ndim, 1) for one in dim] if len(dim) else list(range(self.ndim))
    kept = [one for one in range(self.ndim) if one not in dims]
    flat = (
        wide.permute([*kept, *dims]).reshape([*[self.shape[one] for one in kept], -1]) if self.ndim else wide.reshape(1)
    )
    while flat.shape[-1] > 1:
        half = flat.shape[-1] // 2
        folded = flat[..., :half] ^ flat[..., half : 2 * half]
        flat = torch.cat([folded, flat[..., 2 * half :]], -1)
    flat = flat.squeeze(-1) if flat.shape[-1] else flat.sum(-1)
    if keepdim:
        for one in sorted(dims):
            flat = flat.unsqueeze(one)
    return flat.view(torch.uint64)


def segment_reduce(
    data: Tensor, reduce: str, *, lengths: Tensor | None = None, indices: Tensor | None = None,
    offsets: Tensor | None = None, axis: int = 0, unsafe: bool = False, initial: Any = None,
) -> Tensor:  # fmt: skip
    """One result per segment of `axis`; segments are given by lengths or by offsets (with the end), per leading index."""
    assert lengths is not None or offsets is not None
    if lengths is not None:
        ends = lengths.cumsum(-1)
        starts = ends - lengths
    else:
        assert offsets is not None
        starts, ends = offsets[..., :-1], offsets[..., 1:]
    place = torch.arange(data.shape[axis])
    member = (place >= starts.unsqueeze(-1)) & (place < ends.unsqueeze(-1))  # [..., segments, n]
    rest = data.ndim - axis - 1
    member = member.reshape([*member.shape, *[1] * rest])
    start = initial if initial is not None else {"sum": 0, "mean": 0, "prod": 1, "max": -inf, "min": inf}[reduce]
    neutral = {"sum": 0, "mean": 0, "prod": 1, "max": -inf, "min": inf}[reduce]
    wide = torch.float32 if data.dtype in (torch.bfloat16, torch.float16) else data.dtype
    masked = torch.where(member, data.unsqueeze(axis).to(wide), neutral)
    if reduce == "prod":
        return (masked.prod(axis + 1) * start).to(data.dtype)
    if reduce in ("max", "min"):
        best = masked.amax(axis + 1) if reduce == "max" else masked.amin(axis + 1)
        return (torch.clamp(best, min=start) if reduce == "max" else torch.clamp(best, max=start)).to(data.dtype)
    total = masked.sum(axis + 1) + start
    if reduce == "mean":
        count = member.to(wide).sum(axis + 1)
        empty = torch.full_like(total, float("nan")) if initial is None else total
        total = torch.where(count > 0, total / torch.clamp(count, min=1), empty)
    return total.to(data.dtype)


def linspace(
    start: Tensor | float, end: Tensor | float, steps: int, *, dtype: torch.dtype | None = None, layout: Any = None,
    device: Any = None, pin_memory: bool | None = None,
) -> Tensor:  # fmt: skip
    """With ends that are tensors. Integers: ATen cuts both ends off before it divides, which torch's decomposition does not."""
    if dtype is None or dtype.is_floating_point or dtype.is_complex:
        options = {"dtype": dtype, "layout": layout or torch.strided, "device": device, "pin_memory": bool(pin_memory)}
        return torch._refs.linspace(start, end, steps, **options)
    first, last = (
        edge.to(dtype).to(torch.float64) if isinstance(edge, Tensor) else float(int(edge)) for edge in (start, end)
    )
    place = torch.arange(steps)
    step = (last - first) / max(steps - 1, 1)
    from_last = torch.rsub(place, steps - 1)
    return torch.where(place < max(steps // 2, 1), first + step * place, last - step * from_last).to(dtype)


# -- losses that torch takes apart with other results than ATen's ----------------------------------------------------


def multilabel_margin_loss(self: Tensor, target: Tensor, reduction: int) -> tuple[Tensor, Tensor]:
    """(loss, 1 where a class is a target). A row's targets end at its first -1; torch's decomposition counts the places after it."""
    rows, labels = torch.atleast_2d(self), torch.atleast_2d(target)
    classes = torch.arange(rows.shape[1])
    given = (labels >= 0).cumprod(1).bool()
    picked = torch.gather(rows, 1, torch.where(given, labels, 0))
    is_target = ((labels.unsqueeze(-1) == classes) & given.unsqueeze(-1)).any(1)
    margins = (1 - picked.unsqueeze(-1) + rows.unsqueeze(1)).clamp_min(0)  # [rows, place of a target, class]
    counted = given.unsqueeze(-1) & ~is_target.unsqueeze(1)
    losses = torch.where(counted, margins, 0).sum((1, 2)) / rows.shape[1]
    loss = (losses.reshape(self.shape[:-1]), losses.mean(), losses.sum())[reduction]
    return loss, is_target.to(self.dtype).reshape(target.shape)


def multi_margin_loss(
    self: Tensor,
    target: Tensor,
    p: float = 1,
    margin: float = 1,
    weight: Tensor | None = None,
    reduction: int = 1,
) -> Tensor:
    """torch's decomposition, which gives [1] for one sample without a batch."""
    loss = torch._decomp.decompositions.multi_margin_loss(self, target, p, margin, weight, reduction)
    return loss.reshape(target.shape) if reduction == 0 else loss


EXPANSIONS: dict[torch._ops.OpOverload, Callable] = {
    aten.as_strided.default: as_strided,
    aten.as_strided_copy.default: as_strided,
    aten.as_strided_scatter.default: as_strided_scatter,
    aten.resize.default: resize,
    aten._cdist_forward.default: cdist_forward,
    aten._pdist_forward.default: pdist_forward,
    aten._trilinear.default: trilinear,
    aten.linalg_pinv.atol_rtol_tensor: pinv,
    aten.max_pool2d_with_indices_backward.default: max_pool2d_backward,
    aten.avg_pool2d_backward.default: avg_pool2d_backward,
    aten._adaptive_avg_pool2d_backward.default: adaptive_avg_pool2d_backward,
    aten.convolution_backward.default: convolution_backward,
    aten._native_batch_norm_legit_functional.default: batch_norm_functional,
    aten._native_batch_norm_legit.no_stats: batch_norm_no_stats,
    aten._batch_norm_with_update_functional.default: batch_norm_with_update_functional,
    aten.fractional_max_pool2d.default: fractional_max_pool,
    aten.fractional_max_pool3d.default: fractional_max_pool,
    torch.ops.torch_nn._linear_cross_entropy_batch_chunked.default: linear_cross_entropy,
    torch.ops.torch_nn._linear_cross_entropy_batch_chunked_no_reduction.default: linear_cross_entropy_no_reduction,
    aten.grid_sampler_3d.default: grid_sampler_3d,
    aten.histc.default: histograms.histc,
    aten.histogram.bin_ct: histograms.histogram,
    aten.histogram.bins_tensor: histograms.histogram_of_edges,
    aten._histogramdd_bin_edges.default: histograms.histogramdd_edges,
    aten._histogramdd_from_bin_cts.default: histograms.histogramdd,
    aten._histogramdd_from_bin_tensors.default: histograms.histogramdd_of_edges,
    aten.multi_margin_loss.default: multi_margin_loss,
    aten.multilabel_margin_loss_forward.default: multilabel_margin_loss,
    aten.hash_tensor.default: hash_tensor,
    aten.segment_reduce.default: segment_reduce,
    aten.linspace.Tensor_Tensor: linspace,
    aten.linspace.Tensor_Scalar: linspace,
    aten.linspace.Scalar_Tensor: linspace,
    aten.scaled_dot_product_attention.default: scaled_dot_product_attention,
}

VIEWS = {aten.view.default: view}
"""Ops with a rule that are looked at in the trace all the same: their functions give NotImplemented where the op stays as it is."""
