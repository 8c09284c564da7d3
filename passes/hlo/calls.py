"""How often the functions of a module run: repeated layers are calls of one function (lowering/emit/emit.py), or of a loop's body (lowering/rolling.py)."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

from ..mlir import ir
from .composite import operations


def runs(module: ir.Module) -> dict[str, int]:
    """How often each function of the module runs in a run of `main`, by its symbol; 0 for one that nothing calls.

    What a loop's body calls counts once, unless the loop is counted (`trips`).
    """
    callers: dict[str, Counter[str]] = {}
    functions = {
        ir.SymbolTable.get_symbol_name(view.operation).value: view.operation
        for view in module.body.operations
        if view.operation.name == "func.func"
    }
    for caller, function in functions.items():
        for inner in operations(function):
            if inner.name == "func.call":
                callers.setdefault(callee(inner), Counter())[caller] += turns(inner)

    @cache
    def times(name: str) -> int:
        return (name == "main") + sum(count * times(caller) for caller, count in callers.get(name, Counter()).items())

    return {name: times(name) for name in functions}


def callee(call: ir.Operation) -> str:
    """The symbol that a `func.call` names."""
    return ir.FlatSymbolRefAttr(call.attributes["callee"]).value


def turns(operation: ir.Operation) -> int:
    """How often the operation runs in one run of its function: once in each turn of the counted loops around it."""
    count, around = 1, operation.parent
    while around is not None and around.operation.name != "func.func":
        if around.operation.name == "stablehlo.while":
            count *= trips(around.operation)
        around = around.operation.parent
    return count


def trips(loop: ir.Operation) -> int:
    """The turns of a `stablehlo.while` that counts from 0 by 1 while the counter is less than a constant; 1 for any other."""
    condition, body = (region.blocks[0] for region in loop.regions)
    compared = _made_by(condition.operations[len(condition.operations) - 1].operation.operands[0])
    if (
        compared is None
        or compared.name != "stablehlo.compare"
        or "LT" not in str(compared.attributes["comparison_direction"])
    ):
        return 1
    counter = compared.operands[0]
    if not isinstance(counter, ir.BlockArgument):
        return 1
    place = counter.arg_number
    step = _made_by(body.operations[len(body.operations) - 1].operation.operands[place])
    adds = step is not None and step.name == "stablehlo.add" and step.operands[0] == body.arguments[place]
    if step is None or not adds or _constant(step.operands[1]) != 1 or _constant(loop.operands[place]) != 0:
        return 1
    return _constant(compared.operands[1]) or 1


def _made_by(value: ir.Value[Any]) -> ir.Operation | None:
    return None if isinstance(value.owner, ir.Block) else value.owner.operation


def _constant(value: ir.Value[Any]) -> int | None:
    """The integer of a 0-d constant; None of anything else."""
    made = _made_by(value)
    if made is None or made.name != "stablehlo.constant":
        return None
    elements = ir.DenseElementsAttr(made.attributes["value"])
    return int(ir.IntegerAttr(elements.get_splat_value()).value) if elements.is_splat else None
