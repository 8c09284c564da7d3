"""Lower bounds on a step's work: flops of its matmuls, and bytes of the weights, states and inputs that it reads and writes.

Comes in: a portable module (composites still in it) and its signature. Goes out: a `Cost` per op of a run that must move or
multiply something, with its module path. No compiler can go below it: every weight is
read once, a state where it is touched, and intermediate values stay on the chip.

A kernel's cost is its own `work`; else the matmuls of its reference and the arguments of `main` that it reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from math import prod

import numpy as np

from ...kernels.catalog import kernels
from ...passes.hlo.calls import callee, trips
from ...passes.hlo.composite import Composite, operations, tensor_spec
from ...passes.mlir import ir, stablehlo
from ...runtime.core.signature import Signature
from .hlo import Cost

LOOKS_AT = {"stablehlo.gather", "stablehlo.dynamic_slice", "stablehlo.slice", "stablehlo.dynamic_gather"}
NAMED = re.compile(r'loc\("([^"]*)"\(')
STACKS = {"stablehlo.dynamic_slice", "stablehlo.dynamic_update_slice"}
MOVES = {"stablehlo.reshape", "stablehlo.broadcast_in_dim", "stablehlo.convert", "stablehlo.transpose"}


def ideal(module: ir.Module, signature: Signature) -> list[Cost]:
    """A cost per op of `main`, and of each run of a function that it calls, that has one."""
    functions = ir.SymbolTable(module.operation)
    main = functions["main"]
    return list(_Function(functions, main.regions[0].blocks[0], "").costs(_arguments(main, signature)))


def _arguments(main: ir.OpView, signature: Signature) -> dict[ir.Value, int]:
    """Bytes of each argument, by its value."""
    values = main.regions[0].blocks[0].arguments
    return {value: one.nbytes for value, one in zip(values, signature.arguments, strict=True)}


class _Function:
    """One run of a function, or one turn of a loop's body. path: of the module that its call stands for."""

    def __init__(self, functions: ir.SymbolTable, block: ir.Block, path: str, *, turn: bool = False) -> None:
        self.functions, self.path = functions, path
        self.block = block
        self.turn = turn

    def costs(self, unread: dict[ir.Value, int]) -> Iterator[Cost]:
        """unread: bytes of the values that lie in memory; those that are read are taken out, since they stay on the chip."""
        for operation in self.block.operations:
            op = operation.operation
            if op.name in ("func.return", "return", "stablehlo.return"):
                continue
            touched = [value for value in op.operands if value in unread]
            if op.name == "func.call":
                yield from self._call(op, unread)
                continue
            if op.name == "stablehlo.while" and (count := trips(op)) > 1:
                yield from (cost.times(count) for cost in self._turn(op, unread))
                continue
            if self.turn and op.name in STACKS and op.operands[0] in unread:
                if op.name == "stablehlo.dynamic_slice":  # a layer's part of a stack: what takes it reads it
                    unread[op.results[0]] = _bytes(op.results[0].type)
                continue
            if op.name == "stablehlo.composite":
                cost = self._composite(op, sum(unread[value] for value in touched))
            elif op.name in MOVES and touched:
                unread[op.results[0]] = unread.pop(touched[0])  # an alias of the same memory
                continue
            else:
                size = sum(unread[value] for value in touched)
                if op.name in LOOKS_AT and touched and op.operands[0] == touched[0]:
                    size = min(size, _bytes(op.results[0].type))
                cost = Cost(self._path(op), op.name.removeprefix("stablehlo."), _flops(op), size, dtype=_dtype(op))
            for value in touched:
                unread.pop(value, None)
            if cost.flops or cost.bytes:
                yield cost

    def _call(self, op: ir.Operation, unread: dict[ir.Value, int]) -> Iterator[Cost]:
        """The costs of the called function, as if it stood here."""
        called = _Function(self.functions, self.functions[callee(op)].regions[0].blocks[0], self._path(op))
        yield from self._inside(called, op, unread)

    def _turn(self, op: ir.Operation, unread: dict[ir.Value, int]) -> Iterator[Cost]:
        """The costs of a turn of a counted loop."""
        yield from self._inside(_Function(self.functions, op.regions[1].blocks[0], self._path(op), turn=True), op, unread)

    @staticmethod
    def _inside(called: _Function, op: ir.Operation, unread: dict[ir.Value, int]) -> Iterator[Cost]:
        """The costs of what an op runs with its operands; what is read there is taken out of `unread`."""
        inner: dict[ir.Value, int] = {
            argument: unread[operand]
            for argument, operand in zip(called.block.arguments, op.operands, strict=True)
            if operand in unread
        }
        given = set(inner)
        yield from called.costs(inner)
        for argument, operand in zip(called.block.arguments, op.operands, strict=True):
            if argument in given and argument not in inner:
                unread.pop(operand, None)

    def _path(self, op: ir.Operation) -> str:
        return ".".join(part for part in (self.path, path_of(op)) if part)

    def _composite(self, op: ir.Operation, read: int) -> Cost:
        composite = Composite.of(op)
        flops, size, dtype = _work(composite, self.functions)
        types = ", ".join(composite.types)
        return Cost(self._path(op), composite.name, flops, read if size is None else size, dtype=dtype, operands=types)


def _work(composite: Composite, functions: ir.SymbolTable) -> tuple[float, float | None, str]:
    """Returns (flops, bytes, dtype of the flops); bytes is None where the operands in memory decide it."""
    kernel = kernels().get(composite.name)
    if kernel is not None and kernel.work is not None:
        flops, size = kernel.work(composite.operands, composite.attributes)
        return flops, size, _dtype_of_largest(composite.operation)
    reference = functions[composite.decomposition].operation
    return sum(map(_flops, operations(reference))), None, _dtype_of_largest(composite.operation)


def _dtype_of_largest(op: ir.Operation) -> str:
    specs = [tensor_spec(operand.type) for operand in op.operands]
    return max(specs, key=lambda spec: prod(spec.shape)).dtype.name if specs else "bfloat16"


def _flops(op: ir.Operation) -> float:
    if op.name == "stablehlo.dot_general":
        numbers = stablehlo.DotDimensionNumbers(op.attributes["dot_dimension_numbers"])
        left = ir.RankedTensorType(op.operands[0].type).shape
        inner = prod(left[dim] for dim in numbers.lhs_contracting_dimensions)
        return 2.0 * prod(ir.RankedTensorType(op.results[0].type).shape) * inner
    if op.name == "stablehlo.convolution":
        kernel = ir.RankedTensorType(op.operands[1].type).shape
        result = ir.RankedTensorType(op.results[0].type).shape
        features = max(result[1] if len(result) > 1 else 1, 1)
        return 2.0 * prod(result) * prod(kernel) / features
    return 0.0


def _dtype(op: ir.Operation) -> str:
    return tensor_spec(op.operands[-1].type).dtype.name if op.name == "stablehlo.dot_general" else "bfloat16"


def _bytes(type_: ir.Type) -> int:
    spec = tensor_spec(type_)
    return prod(spec.shape) * np.dtype(spec.dtype).itemsize


def path_of(op: ir.Operation) -> str:
    """The module path that the emitter left in the location: loc("model.layers.0.mlp"(...))."""
    found = NAMED.match(str(op.location))
    return found[1].replace("/", ".") if found else ""


def folded(cost: Cost) -> Cost:
    """The cost with layer numbers in its path replaced by *: model.layers.*.mlp."""
    path = ".".join("*" if part.isdecimal() else part for part in cost.path.split("."))
    return replace(cost, path=path)
