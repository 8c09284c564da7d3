"""How often the functions of a module run: repeated layers are calls of one function (lowering/emit/emit.py)."""

from __future__ import annotations

from collections import Counter
from functools import cache

from ..mlir import ir
from .composite import operations


def runs(module: ir.Module) -> dict[str, int]:
    """How often each function of the module runs in a run of `main`, by its symbol; 0 for one that nothing calls.

    What a loop's body calls counts once.
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
                callers.setdefault(callee(inner), Counter())[caller] += 1

    @cache
    def times(name: str) -> int:
        return (name == "main") + sum(count * times(caller) for caller, count in callers.get(name, Counter()).items())

    return {name: times(name) for name in functions}


def callee(call: ir.Operation) -> str:
    """The symbol that a `func.call` names."""
    return ir.FlatSymbolRefAttr(call.attributes["callee"]).value
