"""Emits `fxhlo::` ops as `stablehlo.composite`, with the kernel's traced reference as decomposition.

The op runs the same reference in eager torch, so composite and graph have one meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ...kernels.catalog import kernels
from ...kernels.spec import Kernel
from ...passes.mlir import ir, stablehlo
from ...passes.torch_private import parse_schema
from ..registry import Rule
from ..types import Value, mlir_type
from .context import Context
from .trace import trace_reference


def composite_rule(kernel: Kernel) -> Rule:
    """The rule of `torch.ops.fxhlo.<kernel>`."""
    schema = parse_schema(f"fxhlo::{kernel.schema}")
    names = [argument.name for argument in schema.arguments]
    defaults = {one.name: one.default_value for one in schema.arguments if one.default_value is not None}

    def rule(ctx: Context, *args: object, **kwargs: object) -> list[Value] | Value:
        given: dict[str, object] = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
        tensors = {name: value for name, value in given.items() if isinstance(value, Value)}
        attributes = {name: value for name, value in given.items() if not isinstance(value, Value)}
        return emit_composite(ctx, kernel, names, tensors, attributes)

    rule.__name__ = kernel.name
    rule.__doc__ = kernel.schema
    return rule


def emit_composite(
    ctx: Context, kernel: Kernel, names: list[str], tensors: dict[str, Value], attributes: dict[str, object]
) -> list[Value] | Value:
    """Emits the kernel's composite; returns its results, a single one not as a list.

    names: the schema's operands, in order; tensors: those that the call passes. attributes: the other arguments.
    """
    types = tuple((name, tensors[name].type) for name in names if name in tensors)
    key = (kernel.name, types, tuple(sorted(attributes.items(), key=lambda item: item[0])))
    result_types = [type_ for type_ in ctx.results if type_ is not None]

    trace = partial(trace_reference, kernel.reference, dict(types), attributes)
    operands = [type_ for _, type_ in types]
    decomposition = ctx.functions.reference(
        key,
        f"fxhlo.{kernel.name}",
        operands,
        result_types,
        trace,
        ctx.inline,
        bool(kernel.implementations),
        kernel.uniform,
    )
    op = composite_op(
        kernel,
        [name for name, _ in types],
        [tensors[name].ir for name, _ in types],
        attributes,
        [mlir_type(*type_) for type_ in result_types],
        decomposition.symbol,
    )
    results = [Value(result, *type_) for result, type_ in zip(op.results, result_types, strict=True)]
    return results if len(results) > 1 else results[0]


def composite_op(
    kernel: Kernel,
    names: Sequence[str],
    operands: Sequence[ir.Value[Any]],
    attributes: Mapping[str, object],
    results: Sequence[ir.Type],
    decomposition: str,
) -> ir.OpView:
    """Emits the composite at the insertion point. names: of `operands`; decomposition: the symbol of a function."""
    return stablehlo.CompositeOp(
        results,
        operands,
        name=f"fxhlo.{kernel.name}",
        decomposition=decomposition,
        num_composite_regions=0,
        composite_attributes=ir.DictAttr.get(_attributes(names, attributes)),
        version=kernel.version,
    )


def _attributes(names: Sequence[str], attributes: Mapping[str, object]) -> dict[str, ir.Attribute]:
    """The kernel's attributes, and `operands`: the names of the tensors that are passed."""
    encoded = {name: _attribute(value) for name, value in attributes.items() if value is not None}
    encoded["operands"] = ir.ArrayAttr.get([ir.StringAttr.get(name) for name in names])
    return encoded


def _attribute(value: object) -> ir.Attribute:
    if isinstance(value, bool):
        return ir.BoolAttr.get(value)
    if isinstance(value, int):
        return ir.IntegerAttr.get(ir.IntegerType.get_signless(64), value)
    if isinstance(value, float):
        return ir.FloatAttr.get(ir.F64Type.get(), value)
    assert isinstance(value, str), value
    return ir.StringAttr.get(value)


def composite_rules() -> dict[str, Rule]:
    """A rule for every kernel of the catalog."""
    return {f"fxhlo.{kernel.name}.default": composite_rule(kernel) for kernel in kernels().values()}
