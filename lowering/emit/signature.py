"""The signature of a lowered Program: static types, names and aliasing of arguments and results."""

from __future__ import annotations

import torch
from torch import fx

from ...passes.mlir import ir
from ...passes.program import Program
from ...runtime.core.signature import Argument, Result, Signature
from ..types import TensorType, numpy_dtype
from .dims import Binding


def signature_of(program: Program, binding: Binding) -> Signature:
    """Returns the signature: an argument per tensor placeholder; one that a result updates is aliased to that result."""
    updated = {result.updates: index for index, result in enumerate(program.results) if result.updates}
    arguments = []
    for node, argument in zip(program.placeholders, program.arguments, strict=True):
        if isinstance(node.meta["val"], torch.Tensor):
            shape, dtype = binding.type_of(node.meta["val"])
            alias = updated.get(argument.name)
            arguments.append(Argument(argument.name, argument.kind, shape, numpy_dtype(dtype).name, alias))
    position = {argument.name: index for index, argument in enumerate(arguments)}
    results = []
    for value, result in zip(program.outputs, program.results, strict=True):
        shape, dtype = output_type(value, binding)
        results.append(Result(result.name, shape, numpy_dtype(dtype).name, position.get(result.updates or "")))
    return Signature(tuple(arguments), tuple(results), structure=program.structure)


def output_type(value: object, binding: Binding) -> TensorType:
    """The type of an output: of a node's tensor, or of the 0-d tensor as which a (symbolic) number is returned."""
    val = value.meta["val"] if isinstance(value, fx.Node) else value
    if isinstance(val, torch.Tensor):
        return binding.type_of(val)
    return TensorType((), torch.tensor(binding.number(val)).dtype)


def annotate(function: ir.OpView, signature: Signature) -> None:
    """Adds names and aliasing to the public function as attributes: PJRT donates buffers by the aliasing, tools read the names."""
    arguments = []
    for argument in signature.arguments:
        attributes: dict[str, ir.Attribute] = {
            "fxhlo.name": ir.StringAttr.get(argument.name),
            "fxhlo.kind": ir.StringAttr.get(argument.kind),
        }
        if argument.alias is not None:
            attributes["tf.aliasing_output"] = ir.IntegerAttr.get(ir.IntegerType.get_signless(32), argument.alias)
        arguments.append(ir.DictAttr.get(attributes))
    function.attributes["arg_attrs"] = ir.ArrayAttr.get(arguments)
    function.attributes["res_attrs"] = ir.ArrayAttr.get(
        [ir.DictAttr.get({"jax.result_info": ir.StringAttr.get(result.name)}) for result in signature.results]
    )
