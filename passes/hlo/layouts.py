"""Pins the layout of states and weights to row-major, as arguments and as results of `main`.

Comes in: a legalized module, and the types of operands that some implementation addresses itself. Goes out: nothing; the
module is changed in place. Without it XLA may lay out a TPU's cache [blocks, 16, 16, 64] with the blocks innermost, and a kernel
that copies blocks would get a transposed copy of the whole cache; so would one that reads weights [128, 5760, 2880], the last
dimension of which fills no tile.
"""

from __future__ import annotations

from collections.abc import Collection

from ..mlir import ir

LAYOUT = "mhlo.layout_mode"


def pin_row_major(module: ir.Module, types: Collection[str]) -> None:
    """Pins every argument of `main` that has one of `types`, and the result that it is updated to (`tf.aliasing_output`)."""
    function = ir.SymbolTable(module.operation)["main"].operation
    kinds = ir.TypeAttr(function.attributes["function_type"]).value
    inputs, results = ir.FunctionType(kinds).inputs, ir.FunctionType(kinds).results
    of_inputs = _dicts(function, "arg_attrs", len(inputs))
    of_results = _dicts(function, "res_attrs", len(results))
    for number, attributes in enumerate(of_inputs):
        if str(inputs[number]) not in types:
            continue
        order = ",".join(map(str, reversed(range(ir.RankedTensorType(inputs[number]).rank))))
        attributes[LAYOUT] = ir.StringAttr.get(f"{{{order}}}")
        if "tf.aliasing_output" in attributes:
            of_results[ir.IntegerAttr(attributes["tf.aliasing_output"]).value][LAYOUT] = attributes[LAYOUT]
    function.attributes["arg_attrs"] = ir.ArrayAttr.get([ir.DictAttr.get(each) for each in of_inputs])
    function.attributes["res_attrs"] = ir.ArrayAttr.get([ir.DictAttr.get(each) for each in of_results])


def _dicts(function: ir.Operation, name: str, count: int) -> list[dict[str, ir.Attribute]]:
    if name not in function.attributes:
        return [{} for _ in range(count)]
    return [{entry.name: entry.attr for entry in ir.DictAttr(each)} for each in ir.ArrayAttr(function.attributes[name])]  # type: ignore[attr-defined]
