"""Control flow: cond, while_loop, scan, associative_scan and map; and torch's wrappers around subgraphs, which are inlined.

A subgraph is emitted in place, inside the region of its StableHLO op, and reads values from outside the region directly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from ...runtime.core.errors import UnsupportedError
from .. import build
from ..emit.context import Context
from ..registry import rule
from ..types import TensorType, Value


def inlined(ctx: Context, region: fx.GraphModule, operands: Sequence[Any]) -> list[Value]:
    """Emits the graph `region`, applied to `operands`, at the insertion point and returns its results."""
    return ctx.inline(region, operands)


def _types(ctx: Context) -> list[TensorType]:
    """Types of the op's results. Raises UnsupportedError if a result is not a tensor."""
    if any(type_ is None for type_ in ctx.results):
        raise UnsupportedError(
            f"{ctx.target_op} returns a number that is known only at run time",
            next_step="carry a 0-d tensor instead of a Python number",
        )
    return [type_ for type_ in ctx.results if type_ is not None]


def _tensors(ctx: Context, values: Sequence[Any]) -> list[Value]:
    """`values` if all are tensors. Raises UnsupportedError for Python numbers, which a loop cannot carry."""
    if not all(isinstance(value, Value) for value in values):
        raise UnsupportedError(
            f"{ctx.target_op} carries a Python number", next_step="carry a 0-d tensor: torch.tensor(number)"
        )
    return list(values)


@rule("higher_order.cond")
def cond(
    ctx: Context, pred: Value | bool, true_fn: fx.GraphModule, false_fn: fx.GraphModule, operands: Sequence[Any] = ()
) -> list[Value]:
    """A Python bool (a predicate on sizes) selects the branch now; a tensor becomes stablehlo.if."""
    if not isinstance(pred, Value):
        return inlined(ctx, true_fn if pred else false_fn, operands)
    branches = [lambda region=region: inlined(ctx, region, operands) for region in (true_fn, false_fn)]
    return build.if_(build.convert(build.reshape(pred, ()), torch.bool), _types(ctx), *branches)


@rule("higher_order.while_loop")
def while_loop(
    ctx: Context,
    cond_fn: fx.GraphModule,
    body_fn: fx.GraphModule,
    carried_inputs: Sequence[Any],
    additional_inputs: Sequence[Any] = (),
) -> list[Value]:
    def condition(*carried: Value) -> Value:
        (going_on,) = inlined(ctx, cond_fn, [*carried, *additional_inputs])
        return build.convert(build.reshape(going_on, ()), torch.bool)

    return build.while_(
        _tensors(ctx, carried_inputs), condition, lambda *carried: inlined(ctx, body_fn, [*carried, *additional_inputs])
    )


Step = Callable[[Sequence[Value], Sequence[Value]], tuple[Sequence[Value], Sequence[Value]]]


def _loop(
    step: Step, carried: Sequence[Value], rows: Sequence[Value], stacked: Sequence[TensorType], first: int = 0
) -> tuple[list[Value], list[Value]]:
    """Loops over dimension 0 of `rows`, from index `first`, and returns (final carried values, stacked results).

    `step(carried, slices)` takes one slice of each of `rows` and returns the next carried values and one slice of each stacked result.
    """
    length, kept = rows[0].shape[0], len(carried)
    buffers = [build.full(*type_, 0) for type_ in stacked]

    def condition(at: Value, *_: Value) -> Value:
        return build.compare("lt", at, build.full((), torch.int32, length))

    def body(at: Value, *state: Value) -> list[Value]:
        now = [
            build.reshape(build.dynamic_slice(row, [at] + [0] * (row.rank - 1), (1, *row.shape[1:])), row.shape[1:])
            for row in rows
        ]
        following, made = step(state[:kept], now)
        written = [
            build.dynamic_update_slice(buffer, build.reshape(row, (1, *row.shape)), [at] + [0] * row.rank)
            for buffer, row in zip(state[kept:], made, strict=True)
        ]
        return [build.add(at, build.full((), torch.int32, 1)), *following, *written]

    _, *final = build.while_([build.full((), torch.int32, first), *carried, *buffers], condition, body)
    return final[:kept], final[kept:]


@rule("higher_order.scan")
def scan(
    ctx: Context,
    combine_fn: fx.GraphModule,
    init: Sequence[Any],
    xs: Sequence[Any],
    additional_inputs: Sequence[Any] = (),
) -> list[Value]:
    def step(carried: Sequence[Value], now: Sequence[Value]) -> tuple[Sequence[Value], Sequence[Value]]:
        results = inlined(ctx, combine_fn, [*carried, *now, *additional_inputs])
        return results[: len(carried)], results[len(carried) :]

    carried, stacked = _loop(step, _tensors(ctx, init), _tensors(ctx, xs), _types(ctx)[len(init) :])
    return carried + stacked


@rule("higher_order.map_impl")
def map_impl(ctx: Context, f: fx.GraphModule, xs: Sequence[Any], args: Sequence[Any] = ()) -> list[Value]:
    _, stacked = _loop(lambda _, now: ((), inlined(ctx, f, [*now, *args])), [], _tensors(ctx, xs), _types(ctx))
    return stacked


@rule("higher_order.associative_scan")
def associative_scan(
    ctx: Context, combine_fn: fx.GraphModule, xs: Sequence[Any], additional_inputs: Sequence[Any] = ()
) -> list[Value]:
    """Scans sequentially: combine_fn is an arbitrary graph, and this is the order of eager torch."""
    rows = _tensors(ctx, xs)
    first = [build.slice_dim(row, 0, 0, 1) for row in rows]
    carried = [build.reshape(row, row.shape[1:]) for row in first]

    def step(before: Sequence[Value], now: Sequence[Value]) -> tuple[Sequence[Value], Sequence[Value]]:
        results = inlined(ctx, combine_fn, [*before, *now, *additional_inputs])
        return results, results

    _, stacked = _loop(step, carried, rows, _types(ctx), first=1)
    return [build.dynamic_update_slice(result, row, [0] * row.rank) for result, row in zip(stacked, first, strict=True)]


# -- subgraphs that run once ---------------------------------------------------------------------------------------


@rule("higher_order.wrap_with_set_grad_enabled")
def wrap_with_set_grad_enabled(
    ctx: Context, enable_grad: bool, wrapped_func: fx.GraphModule, *args: Any
) -> list[Value]:
    return inlined(ctx, wrapped_func, args)


@rule("higher_order.wrap_with_autocast")
def wrap_with_autocast(
    ctx: Context,
    device_type: str,
    dtype: object,
    enabled: bool,
    cache_enabled: bool,
    wrapped_func: fx.GraphModule,
    *args: Any,
) -> list[Value]:
    return inlined(ctx, wrapped_func, args)


@rule("higher_order.invoke_subgraph")
def invoke_subgraph(ctx: Context, subgraph: fx.GraphModule, identifier: str, *operands: Any) -> list[Value]:
    return inlined(ctx, subgraph, operands)
