"""Builders, which lowering rules are written with. Each takes and returns `Value`s and emits StableHLO at the current
insertion point and location.

Guaranteed: result shapes and dtypes are computed here from the operands, not inferred by MLIR; no builder promotes or
broadcasts unless its name says so. Builders do not check their operands: MLIR's verifier rejects those that disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import torch

from ..passes.mlir import chlo, ir, stablehlo
from .types import TensorType, Value, mlir_type, numpy_dtype

Builder = Callable[..., ir.Value[Any]]
"""A function of the dialects' Python bindings that emits an op with one result, such as stablehlo.add."""

COMPARISONS = {"eq": "EQ", "ne": "NE", "lt": "LT", "le": "LE", "gt": "GT", "ge": "GE"}


def value(result: ir.Value[Any], shape: Sequence[int], dtype: torch.dtype) -> Value:
    """Wraps the MLIR result of an op built without a builder, whose shape and dtype the caller gives."""
    return Value(result, tuple(shape), dtype)


# -- constants -----------------------------------------------------------------------------------------------------


def array(data: np.ndarray, dtype: torch.dtype) -> Value:
    """Dense constant of the shape of `data`, which is converted to the numpy form of `dtype`; a splat if all elements are equal."""
    data = np.ascontiguousarray(data, dtype=numpy_dtype(dtype)).reshape(np.shape(data))
    type_ = mlir_type(data.shape, dtype)
    if data.size and (data.size == 1 or (data.reshape(-1)[0:1].tobytes() * data.size) == data.tobytes()):
        return full(data.shape, dtype, data.reshape(-1)[0])
    if dtype is torch.bool:
        attribute: ir.Attribute = ir.DenseElementsAttr.get(
            data.view(np.uint8).data, type=ir.IntegerType.get_signless(1), shape=list(data.shape)
        )
    else:
        attribute = _dense(data, type_)
    return Value(stablehlo.ConstantOp(attribute).result, data.shape, dtype)


def _dense(data: np.ndarray, type_: ir.Type) -> ir.Attribute:
    """Dense attribute of any element type; extension dtypes (bfloat16, float8) are passed as raw bits."""
    element = ir.RankedTensorType(type_).element_type
    bits = (
        data if data.dtype.kind in "iufc" and data.dtype.isbuiltin == 1 else data.view(f"uint{8 * data.dtype.itemsize}")
    )
    if data.size == 0:
        return ir.DenseElementsAttr.get(bits.reshape(-1).data, type=element, shape=list(data.shape))
    return ir.DenseElementsAttr.get(bits.data, type=element, shape=list(data.shape))


def full(shape: Sequence[int], dtype: torch.dtype, scalar: object) -> Value:
    """Splat constant of `shape`; `scalar` is converted to `dtype` as torch converts a Python scalar (integers wrap around)."""
    shape = tuple(shape)
    type_ = ir.RankedTensorType(mlir_type(shape, dtype))
    return Value(stablehlo.ConstantOp(_splat(type_, dtype, scalar)).result, shape, dtype)


def _splat(type_: ir.RankedTensorType, dtype: torch.dtype, scalar: object) -> ir.Attribute:
    """Dense attribute with every element equal to `scalar`; MLIR's bindings have no splat for complex or empty types."""
    element = type_.element_type
    if prod(type_.shape) == 0:
        return _dense(np.zeros(tuple(type_.shape), numpy_dtype(dtype)), type_)
    if dtype.is_complex:
        return (
            ir.DenseElementsAttr.get(
                np.array(scalar, numpy_dtype(dtype)).reshape(()).data, type=element, shape=list(type_.shape)
            )
            if not type_.shape
            else _dense(np.full(tuple(type_.shape), scalar, numpy_dtype(dtype)), type_)
        )
    if dtype.is_floating_point:
        attribute: ir.Attribute = ir.FloatAttr.get(element, float(scalar))  # type: ignore[arg-type]
    elif dtype is torch.bool:
        attribute = ir.IntegerAttr.get(element, int(bool(scalar)))
    else:
        whole: Any = scalar if isinstance(scalar, int) else int(scalar)  # type: ignore[call-overload]
        attribute = ir.IntegerAttr.get(element, _wrap(whole, dtype))
    return ir.DenseElementsAttr.get_splat(type_, attribute)


def _wrap(number: int, dtype: torch.dtype) -> int:
    """Wraps a Python int around to the width of `dtype`; negative if the sign bit is set, as IntegerAttr expects."""
    width = 8 * dtype.itemsize
    if 0 <= number < 1 << (width - 1):
        return number
    number &= (1 << width) - 1
    return number - (1 << width) if number >> (width - 1) else number


def full_like(like: Value, scalar: object) -> Value:
    """Splat constant of the shape and dtype of `like`."""
    return full(like.shape, like.dtype, scalar)


def iota(shape: Sequence[int], dtype: torch.dtype, dim: int) -> Value:
    """0, 1, ... along `dim`, the same along the other dimensions; as bool: False, then True."""
    if dtype is torch.bool:
        return convert(iota(shape, torch.int32, dim), dtype)
    return Value(stablehlo.iota(mlir_type(tuple(shape), dtype), dim), tuple(shape), dtype)


# -- elementwise ---------------------------------------------------------------------------------------------------


def unary(op: Builder, operand: Value, dtype: torch.dtype | None = None) -> Value:
    """Applies a one-operand op of stablehlo or chlo; `dtype` is the result's, if it is not the operand's."""
    return Value(op(operand.ir), operand.shape, dtype or operand.dtype)


def binary(op: Builder, left: Value, right: Value) -> Value:
    """Applies a two-operand op of stablehlo or chlo to operands of one shape and dtype, which the result has too."""
    return Value(op(left.ir, right.ir), left.shape, left.dtype)


def add(left: Value, right: Value) -> Value:
    """left + right; logical or for bool."""
    return binary(stablehlo.or_ if left.dtype is torch.bool else stablehlo.add, left, right)


def subtract(left: Value, right: Value) -> Value:
    return binary(stablehlo.subtract, left, right)


def multiply(left: Value, right: Value) -> Value:
    """left * right; logical and for bool."""
    return binary(stablehlo.and_ if left.dtype is torch.bool else stablehlo.multiply, left, right)


def divide(left: Value, right: Value) -> Value:
    """left / right; integers are truncated towards zero."""
    return binary(stablehlo.divide, left, right)


def maximum(left: Value, right: Value) -> Value:
    """The larger of two elements; NaN if either is NaN."""
    return binary(stablehlo.maximum, left, right)


def minimum(left: Value, right: Value) -> Value:
    """The smaller of two elements; NaN if either is NaN."""
    return binary(stablehlo.minimum, left, right)


def logical_and(left: Value, right: Value) -> Value:
    """Logical and for bool; bitwise and for integers."""
    return binary(stablehlo.and_, left, right)


def logical_or(left: Value, right: Value) -> Value:
    """Logical or for bool; bitwise or for integers."""
    return binary(stablehlo.or_, left, right)


def logical_not(operand: Value) -> Value:
    """Logical not for bool; bitwise not for integers."""
    return unary(stablehlo.not_, operand)


def compare(direction: str, left: Value, right: Value) -> Value:
    """Compares elements; `direction` is eq, ne, lt, le, gt or ge. The result is bool; with NaN, only ne is True."""
    return Value(
        stablehlo.compare(left.ir, right.ir, stablehlo.ComparisonDirectionAttr.get(COMPARISONS[direction])),
        left.shape,
        torch.bool,
    )


def compare_in_total_order(direction: str, left: Value, right: Value) -> Value:
    """`compare` of floats by IEEE 754's total order: -NaN < -inf < ... < -0 < +0 < ... < inf < NaN."""
    kind = stablehlo.ComparisonTypeAttr.get("TOTALORDER")
    way = stablehlo.ComparisonDirectionAttr.get(COMPARISONS[direction])
    return Value(stablehlo.compare(left.ir, right.ir, way, compare_type=kind), left.shape, torch.bool)


def select(condition: Value, on_true: Value, on_false: Value) -> Value:
    """Elementwise select; `condition` is bool, of the operands' shape or 0-d."""
    return Value(stablehlo.select(condition.ir, on_true.ir, on_false.ir), on_true.shape, on_true.dtype)


def convert(operand: Value, dtype: torch.dtype) -> Value:
    """torch's `.to(dtype)`: nonzero values and NaN become True; floats are truncated to integers; complex drops its imaginary part."""
    if operand.dtype == dtype:
        return operand
    if dtype is torch.bool:
        return compare("ne", operand, full_like(operand, 0))
    if operand.dtype.is_complex and not dtype.is_complex:
        part = torch.float32 if operand.dtype is torch.complex64 else torch.float64
        return convert(Value(stablehlo.real(operand.ir), operand.shape, part), dtype)
    if operand.dtype is torch.bool and (dtype.is_floating_point or dtype.is_complex):
        # XLA rewrites `convert(i1) * x` to a select, in which False * NaN is 0; converting by way of uint8 prevents that
        operand = Value(
            stablehlo.convert(mlir_type(operand.shape, torch.uint8), operand.ir), operand.shape, torch.uint8
        )
    if dtype is torch.float8_e4m3fn and operand.dtype.itemsize > 1:  # torch saturates; XLA converts overflow to NaN
        operand = operand if operand.dtype.is_floating_point else convert(operand, torch.float32)
        largest = full_like(operand, 448.0)
        operand = maximum(minimum(operand, largest), unary(stablehlo.negate, largest))
    return Value(stablehlo.convert(mlir_type(operand.shape, dtype), operand.ir), operand.shape, dtype)


def bitcast(operand: Value, dtype: torch.dtype) -> Value:
    """Reinterprets the bits as `dtype`. If the widths differ, the last dimension grows or shrinks, as in torch's `view(dtype)`."""
    if torch.bool in (operand.dtype, dtype) and operand.dtype is not dtype:  # torch stores a bool as a byte, 0 or 1
        if operand.dtype is torch.bool:
            return bitcast(convert(operand, torch.uint8), dtype)
        return convert(bitcast(operand, torch.uint8), dtype)
    old, new, shape = operand.dtype.itemsize, dtype.itemsize, operand.shape
    if old < new:  # StableHLO's bitcast adds or removes a last dimension
        operand = reshape(operand, (*shape[:-1], shape[-1] * old // new, new // old))
    cast = operand.shape[:-1] if old < new else (*shape, old // new) if old > new else shape
    result = Value(stablehlo.bitcast_convert(mlir_type(cast, dtype), operand.ir), cast, dtype)
    return reshape(result, (*shape[:-1], shape[-1] * old // new)) if old > new else result


# -- shape ---------------------------------------------------------------------------------------------------------


def reshape(operand: Value, shape: Sequence[int]) -> Value:
    """Reshapes to `shape`, which has as many elements, in row-major order; no op if the shape is the same."""
    shape = tuple(shape)
    if shape == operand.shape:
        return operand
    return Value(stablehlo.reshape(mlir_type(shape, operand.dtype), operand.ir), shape, operand.dtype)


def broadcast_in_dim(operand: Value, shape: Sequence[int], dims: Sequence[int]) -> Value:
    """Broadcasts to `shape`; dimension i of the operand, of size 1 or of the result's size, becomes dimension dims[i]."""
    shape = tuple(shape)
    if shape == operand.shape and list(dims) == list(range(len(shape))):
        return operand
    result = stablehlo.broadcast_in_dim(
        mlir_type(shape, operand.dtype), operand.ir, ir.DenseI64ArrayAttr.get(list(dims))
    )
    return Value(result, shape, operand.dtype)


def broadcast(operand: Value, shape: Sequence[int]) -> Value:
    """Broadcasts to `shape`, aligning dimensions from the right, as torch does."""
    first = len(shape) - operand.rank
    return broadcast_in_dim(operand, shape, range(first, len(shape)))


def transpose(operand: Value, permutation: Sequence[int]) -> Value:
    """Permutes dimensions as torch.permute does: result dimension i is operand dimension permutation[i]."""
    permutation = list(permutation)
    if permutation == list(range(operand.rank)):
        return operand
    shape = tuple(operand.shape[dim] for dim in permutation)
    return Value(stablehlo.transpose(operand.ir, ir.DenseI64ArrayAttr.get(permutation)), shape, operand.dtype)


def slice_(operand: Value, starts: Sequence[int], limits: Sequence[int], strides: Sequence[int] | None = None) -> Value:
    """Slices every dimension by start, limit (exclusive) and stride (1 by default); bounds lie within the operand."""
    strides = list(strides or [1] * operand.rank)
    shape = tuple(
        max(0, -(-(limit - start) // stride)) for start, limit, stride in zip(starts, limits, strides, strict=True)
    )
    if shape == operand.shape and set(strides) <= {1}:
        return operand
    i64s = ir.DenseI64ArrayAttr.get
    return Value(
        stablehlo.slice(operand.ir, i64s(list(starts)), i64s(list(limits)), i64s(strides)), shape, operand.dtype
    )


def slice_dim(operand: Value, dim: int, start: int, limit: int, stride: int = 1) -> Value:
    """Slices one dimension; the others are kept whole."""
    starts, limits, strides = [0] * operand.rank, list(operand.shape), [1] * operand.rank
    starts[dim], limits[dim], strides[dim] = start, limit, stride
    return slice_(operand, starts, limits, strides)


def concatenate(operands: Sequence[Value], dim: int) -> Value:
    """Concatenates operands of one dtype along `dim`; their other sizes are equal."""
    operands = list(operands)
    if len(operands) == 1:
        return operands[0]
    shape = list(operands[0].shape)
    shape[dim] = sum(operand.shape[dim] for operand in operands)
    return Value(stablehlo.concatenate([operand.ir for operand in operands], dim), tuple(shape), operands[0].dtype)


def pad(
    operand: Value, fill: Value, low: Sequence[int], high: Sequence[int], interior: Sequence[int] | None = None
) -> Value:
    """Pads each dimension with the 0-d `fill`: `low` before, `high` after, `interior` between elements. Negative amounts crop."""
    interior = list(interior or [0] * operand.rank)
    shape = tuple(
        size + before + after + max(size - 1, 0) * between
        for size, before, after, between in zip(operand.shape, low, high, interior, strict=True)
    )
    i64s = ir.DenseI64ArrayAttr.get
    return Value(
        stablehlo.pad(operand.ir, fill.ir, i64s(list(low)), i64s(list(high)), i64s(interior)), shape, operand.dtype
    )


def reverse(operand: Value, dims: Sequence[int]) -> Value:
    """Reverses the order of elements along `dims`."""
    return Value(stablehlo.reverse(operand.ir, ir.DenseI64ArrayAttr.get(list(dims))), operand.shape, operand.dtype)


# -- regions -------------------------------------------------------------------------------------------------------

Body = Callable[..., "Sequence[Value] | Value"]


def fill_region(region: ir.Region, types: Sequence[TensorType], body: Body) -> None:
    """Appends a block with arguments of `types` to `region`; `body` takes them and returns the values that the block returns."""
    location = ir.Location.current
    block = region.blocks.append(*[mlir_type(*type_) for type_ in types], arg_locs=[location] * len(types))
    with ir.InsertionPoint(block):
        arguments = [Value(argument, *type_) for argument, type_ in zip(block.arguments, types, strict=True)]
        results = body(*arguments)
        results = [results] if isinstance(results, Value) else list(results)
        stablehlo.return_([result.ir for result in results])


def reduce(operands: Sequence[Value], initials: Sequence[Value], dims: Sequence[int], body: Body) -> list[Value]:
    """Reduces operands of one shape together over `dims`, from 0-d `initials`; results have the operands' dtypes, without `dims`.

    `body(*left, *right)` takes 0-d values and returns the combined ones, one per operand; it must be associative.
    """
    shape = tuple(size for dim, size in enumerate(operands[0].shape) if dim not in set(dims))
    op = stablehlo.ReduceOp(
        [mlir_type(shape, operand.dtype) for operand in operands],
        [operand.ir for operand in operands],
        [initial.ir for initial in initials],
        ir.DenseI64ArrayAttr.get(sorted(dims)),
    )
    fill_region(op.regions[0], [TensorType((), operand.dtype) for operand in operands] * 2, body)
    return [Value(result, shape, operand.dtype) for result, operand in zip(op.results, operands, strict=True)]


def reduce_with(op: Callable[[Value, Value], Value], operand: Value, initial: object, dims: Sequence[int]) -> Value:
    """Reduces one operand over `dims` with a builder such as `add` or `maximum`, from the scalar `initial`."""
    if not dims:
        return operand
    return reduce([operand], [full((), operand.dtype, initial)], dims, op)[0]


def if_(
    predicate: Value,
    types: Sequence[TensorType],
    on_true: Callable[[], Sequence[Value]],
    on_false: Callable[[], Sequence[Value]],
) -> list[Value]:
    """stablehlo.if on a 0-d bool; both branches return values of `types`."""
    op = stablehlo.IfOp([mlir_type(*type_) for type_ in types], predicate.ir)
    fill_region(op.regions[0], [], on_true)
    fill_region(op.regions[1], [], on_false)
    return [Value(result, *type_) for result, type_ in zip(op.results, types, strict=True)]


def while_(initials: Sequence[Value], condition: Body, body: Body) -> list[Value]:
    """stablehlo.while: `condition` maps the carried values to a 0-d bool, `body` to the next ones, whose types stay the same."""
    types = [initial.type for initial in initials]
    op = stablehlo.WhileOp([mlir_type(*type_) for type_ in types], [initial.ir for initial in initials])
    fill_region(op.regions[0], types, condition)
    fill_region(op.regions[1], types, body)
    return [Value(result, *type_) for result, type_ in zip(op.results, types, strict=True)]


def sort(operands: Sequence[Value], dim: int, before: Body, *, stable: bool = True) -> list[Value]:
    """Sorts operands of one shape together along `dim`; `before(a0, b0, a1, b1, ...)` returns whether a comes before b (0-d bool)."""
    op = stablehlo.SortOp(
        [mlir_type(*operand.type) for operand in operands],
        [operand.ir for operand in operands],
        dimension=dim,
        is_stable=stable,
    )
    fill_region(op.regions[0], [TensorType((), operand.dtype) for operand in operands for _ in range(2)], before)
    return [Value(result, *operand.type) for result, operand in zip(op.results, operands, strict=True)]


# -- contraction ---------------------------------------------------------------------------------------------------


def dot_general(
    left: Value,
    right: Value,
    *,
    contract: tuple[Sequence[int], Sequence[int]],
    batch: tuple[Sequence[int], Sequence[int]] = ((), ()),
    dtype: torch.dtype | None = None,
) -> Value:
    """Contracts dimensions of `left` with those of `right`; sums are kept and returned in `dtype` (`left.dtype` by default).

    `contract` and `batch` hold dimensions of (left, right), in matching order. Result dimensions: batch, left free, right free.
    """
    dtype = dtype or left.dtype
    free_left = [dim for dim in range(left.rank) if dim not in {*contract[0], *batch[0]}]
    free_right = [dim for dim in range(right.rank) if dim not in {*contract[1], *batch[1]}]
    shape = tuple(
        [left.shape[d] for d in batch[0]] + [left.shape[d] for d in free_left] + [right.shape[d] for d in free_right]
    )
    numbers = stablehlo.DotDimensionNumbers.get(
        lhs_batching_dimensions=list(batch[0]),
        rhs_batching_dimensions=list(batch[1]),
        lhs_contracting_dimensions=list(contract[0]),
        rhs_contracting_dimensions=list(contract[1]),
    )
    product = stablehlo.dot_general(
        mlir_type(shape, dtype), left.ir, right.ir, numbers, precision_config=_precision(left.dtype)
    )
    return Value(product, shape, dtype)


def _precision(dtype: torch.dtype) -> ir.ArrayAttr | None:
    """Precision config for a dot in `dtype`: XLA rounds float32 operands to bfloat16 on TPU by default, torch never does."""
    if dtype not in (torch.float32, torch.complex64):
        return None
    highest = stablehlo.PrecisionAttr.get("HIGHEST")
    return ir.ArrayAttr.get([highest, highest])


# -- indexing ------------------------------------------------------------------------------------------------------


def gather(
    operand: Value,
    indices: Value,
    *,
    offset_dims: Sequence[int],
    collapsed: Sequence[int],
    start_index_map: Sequence[int],
    slice_sizes: Sequence[int],
    shape: Sequence[int],
    index_vector_dim: int | None = None,
    operand_batching: Sequence[int] = (),
    indices_batching: Sequence[int] = (),
    sorted_indices: bool = False,
) -> Value:
    """stablehlo.gather with its dimension numbers and the result's `shape`; out-of-range start indices are clamped, as StableHLO defines."""
    numbers = stablehlo.GatherDimensionNumbers.get(
        offset_dims=list(offset_dims),
        collapsed_slice_dims=list(collapsed),
        operand_batching_dims=list(operand_batching),
        start_indices_batching_dims=list(indices_batching),
        start_index_map=list(start_index_map),
        index_vector_dim=indices.rank - 1 if index_vector_dim is None else index_vector_dim,
    )
    result = stablehlo.gather(
        operand.ir, indices.ir, numbers, ir.DenseI64ArrayAttr.get(list(slice_sizes)), indices_are_sorted=sorted_indices
    )
    return Value(result, tuple(shape), operand.dtype)


def take(operand: Value, indices: Value, dim: int = 0) -> Value:
    """numpy.take with clamped indices: in the result's shape, the shape of `indices` (integers) replaces `dim`."""
    shape = operand.shape[:dim] + indices.shape + operand.shape[dim + 1 :]
    offset_dims = [d if d < dim else d + indices.rank - 1 for d in range(operand.rank) if d != dim]
    sizes = [1 if d == dim else size for d, size in enumerate(operand.shape)]
    if 0 in shape or operand.shape[dim] == 0:
        return full(shape, operand.dtype, 0)
    return gather(
        operand,
        indices,
        offset_dims=offset_dims,
        collapsed=[dim],
        start_index_map=[dim],
        slice_sizes=sizes,
        shape=shape,
        index_vector_dim=indices.rank,
    )


def scatter(
    operand: Value,
    indices: Value,
    updates: Value,
    body: Body,
    *,
    update_window_dims: Sequence[int],
    inserted: Sequence[int],
    scatter_dims: Sequence[int],
    index_vector_dim: int | None = None,
    operand_batching: Sequence[int] = (),
    indices_batching: Sequence[int] = (),
    unique: bool = False,
) -> Value:
    """stablehlo.scatter into one operand; out-of-range updates are dropped. `body(old, update)` returns the new element (0-d)."""
    numbers = stablehlo.ScatterDimensionNumbers.get(
        update_window_dims=list(update_window_dims),
        inserted_window_dims=list(inserted),
        input_batching_dims=list(operand_batching),
        scatter_indices_batching_dims=list(indices_batching),
        scattered_dims_to_operand_dims=list(scatter_dims),
        index_vector_dim=indices.rank - 1 if index_vector_dim is None else index_vector_dim,
    )
    op = stablehlo.ScatterOp(
        [mlir_type(*operand.type)], [operand.ir], indices.ir, [updates.ir], numbers, unique_indices=unique
    )
    fill_region(op.regions[0], [TensorType((), operand.dtype)] * 2, body)
    return Value(op.results[0], *operand.type)


def erf(operand: Value) -> Value:
    """The error function (a CHLO op)."""
    return unary(chlo.erf, operand)


def dynamic_update_slice(operand: Value, update: Value, starts: Sequence[Value | int]) -> Value:
    """`operand` with `update` written at `starts` (0-d Values of one integer dtype, or ints), which are clamped so that it fits."""
    at = [start if isinstance(start, Value) else full((), torch.int32, start) for start in starts]
    return Value(stablehlo.dynamic_update_slice(operand.ir, update.ir, [start.ir for start in at]), *operand.type)


def conjugate(operand: Value) -> Value:
    """Complex conjugate; returns real operands unchanged."""
    if not operand.dtype.is_complex:
        return operand
    part = torch.float32 if operand.dtype is torch.complex64 else torch.float64
    imaginary = Value(stablehlo.imag(operand.ir), operand.shape, part)
    return Value(stablehlo.complex(stablehlo.real(operand.ir), stablehlo.negate(imaginary.ir)), *operand.type)


def convolution(
    operand: Value,
    kernel: Value,
    *,
    padding: tuple[Sequence[int], Sequence[int]],
    strides: Sequence[int] | None = None,
    input_dilation: Sequence[int] | None = None,
    kernel_dilation: Sequence[int] | None = None,
    groups: int = 1,
    dtype: torch.dtype | None = None,
) -> Value:
    """Convolves operand [N, C, ...] with kernel [O, C / groups, ...] to [N, O, ...]; accumulates in, and returns, `dtype`.

    `padding` holds the amounts (before, after) of each spatial dimension; negative amounts crop.
    """
    rank, dtype = operand.rank - 2, dtype or operand.dtype
    ones = [1] * rank
    strides, wide, reach = strides or ones, input_dilation or ones, kernel_dilation or ones
    sizes = [
        ((size - 1) * w + 1 + low + high - ((window - 1) * r + 1)) // stride + 1
        for size, window, low, high, stride, w, r in zip(
            operand.shape[2:], kernel.shape[2:], *padding, strides, wide, reach, strict=True
        )
    ]
    shape = (operand.shape[0], kernel.shape[0], *sizes)
    spatial = list(range(2, rank + 2))
    i64s = ir.DenseI64ArrayAttr.get
    result = stablehlo.convolution(
        mlir_type(shape, dtype),
        operand.ir,
        kernel.ir,
        stablehlo.ConvDimensionNumbers.get(0, 1, spatial, 1, 0, spatial, 0, 1, spatial),
        feature_group_count=groups,
        batch_group_count=1,
        window_strides=i64s(list(strides)),
        padding=_pairs(*padding),
        lhs_dilation=i64s(list(wide)),
        rhs_dilation=i64s(list(reach)),
        precision_config=_precision(operand.dtype),
    )
    return Value(result, shape, dtype)


def _pairs(low: Sequence[int], high: Sequence[int]) -> ir.Attribute:
    """Padding attribute [dimensions, 2] of StableHLO's windows, from the amounts before and after each dimension."""
    return ir.DenseIntElementsAttr.get(np.array([low, high], np.int64).T.copy().data)


def reduce_window(
    operands: Sequence[Value],
    initials: Sequence[Value],
    body: Body,
    *,
    window: Sequence[int],
    strides: Sequence[int] | None = None,
    dilation: Sequence[int] | None = None,
    padding: tuple[Sequence[int], Sequence[int]] | None = None,
) -> list[Value]:
    """stablehlo.reduce_window over all dimensions; `body(*left, *right)` returns the combined 0-d values, as in `reduce`."""
    rank = operands[0].rank
    strides, dilation = strides or [1] * rank, dilation or [1] * rank
    low, high = padding or ([0] * rank, [0] * rank)
    shape = tuple(
        (size + before + after - ((length - 1) * reach + 1)) // stride + 1
        for size, before, after, length, reach, stride in zip(
            operands[0].shape, low, high, window, dilation, strides, strict=True
        )
    )
    i64s = ir.DenseI64ArrayAttr.get
    op = stablehlo.ReduceWindowOp(
        [mlir_type(shape, operand.dtype) for operand in operands],
        [operand.ir for operand in operands],
        [initial.ir for initial in initials],
        i64s(list(window)),
        window_strides=i64s(list(strides)),
        window_dilations=i64s(list(dilation)),
        padding=_pairs(low, high),
    )
    fill_region(op.regions[0], [TensorType((), operand.dtype) for operand in operands] * 2, body)
    return [Value(result, shape, operand.dtype) for result, operand in zip(op.results, operands, strict=True)]


def dynamic_slice(operand: Value, starts: Sequence[Value | int], sizes: Sequence[int]) -> Value:
    """The block of `sizes` at `starts` (0-d Values of one integer dtype, or ints), which are clamped so that it lies in the operand."""
    at = [start if isinstance(start, Value) else full((), torch.int32, start) for start in starts]
    result = stablehlo.dynamic_slice(operand.ir, [start.ir for start in at], ir.DenseI64ArrayAttr.get(list(sizes)))
    return Value(result, tuple(sizes), operand.dtype)
