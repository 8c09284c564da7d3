"""Attention over devices that have other keys of the same heads: each attends to its own, and what they carry of their softmax is merged.

Comes in: a composite's operands and its partition rule (`Share`). Goes out: one region, with a maximum and a sum over the devices of `rule.context`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from ...kernels.spec import Implementation, Kernel, Operands, TensorSpec
from ...runtime.core.sharding import REPLICATED
from ..mlir import func, ir
from .shardy import Value, local_type, manual
from .shares import Share

Lower = Callable[[Implementation, Operands, Mapping[str, Any]], str]
"""The symbol of an implementation for these operands and attributes."""
NUMBER = "number"
"""The operand that tells a device which it is."""


Call = Callable[[str, Mapping[str, TensorSpec], Mapping[str, Any], list[Value], list[ir.Type]], list[Value]]
"""(a function's name, the specs of its operands, attributes, operands, types of results) -> its results, at the insertion point."""


def calls(module: str, lower: Lower) -> Call:
    """Calls JAX functions of a module, each lowered once for its operands."""
    functions = import_module(module)

    def call(
        name: str,
        specs: Mapping[str, TensorSpec],
        attributes: Mapping[str, Any],
        values: list[Value],
        results: list[ir.Type],
    ) -> list[Value]:
        made = Implementation("any", name, getattr(functions, name))
        symbol = lower(made, Operands.of(specs, specs.values()), attributes)
        return list(func.CallOp(results, ir.FlatSymbolRefAttr.get(symbol), values).results)

    return call


def over_context(share: Share, kernel: Kernel, local: Operands, types: Sequence[ir.Type], lower: Lower) -> list[Value]:
    """The composite's results at the insertion point. local: the operands of one device. types: of the results, as a whole."""
    assert kernel.over_context is not None, (
        f"{kernel.name} has a rule over contexts and does not say what a device does"
    )
    rule, collectives, call = share.rule, share.collectives, calls(kernel.over_context, lower)
    mesh = collectives.mesh
    devices = int(np.prod([mesh.size(axis) for axis in rule.context]))
    output, cache = (local_type(type_, one, mesh) for type_, one in zip(types, rule.results, strict=True))
    rows, heads, size = ir.RankedTensorType(output).shape
    exact, number = ir.F32Type.get(), TensorSpec((), np.dtype(np.int32))

    def body(values: list[Value]) -> list[Value]:
        parts = ir.RankedTensorType.get([rows, heads, size + 1], exact)
        scores = ir.RankedTensorType.get([rows, heads], exact)
        which = collectives.start(devices, rule.context)
        attributes = {**share.composite.attributes, "devices": devices}
        found, highest, updated = call(
            "part", {**local.named, NUMBER: number}, attributes, [*values, which], [parts, scores, cache]
        )
        overall = collectives.most(highest, rule.context)
        of_scores = TensorSpec((rows, heads), np.dtype(np.float32))
        of_parts = TensorSpec((rows, heads, size + 1), np.dtype(np.float32))
        specs = {"parts": of_parts, "highest": of_scores, "overall": of_scores}
        (own,) = call("weighted", specs, {}, [found, highest, overall], [parts])
        dtype = local.named["query"].dtype.name
        (merged,) = call(
            "merged", {"parts": of_parts}, {"dtype": dtype}, [collectives.sum(own, rule.context)], [output]
        )
        return [merged, updated]

    operands = [(value, rule.operands.get(name, REPLICATED)) for name, value in share.named.items()]
    return manual(operands, list(zip(types, rule.results, strict=True)), mesh, body)
