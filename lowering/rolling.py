"""Rolls the calls of a repeated layer into one `stablehlo.while` over stacked weights and states.

Comes in: a LoweredModule whose `main` calls one function for each of its repeated layers (emit). Goes out: the same computation with a loop in the place
of the longest chain of calls. Guaranteed: the arguments that differ from layer to layer are one argument each, stacked along a new first dimension
in the order of the layers; all others, and the results that are no updates, stay as they are; what is no chain is left as it is.

Off by default for every target: a loop slices a layer's weights and states out of the stack (docs/depth.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from ..passes import mlir
from ..passes.hlo.calls import callee
from ..passes.mlir import func, ir, stablehlo
from ..runtime.core.signature import Argument, Result, Signature
from .build import full
from .emit.signature import annotate
from .lowered import LoweredModule, as_numpy, is_real

SHORTEST = 2
"""Calls of a chain that is rolled."""


Module = TypeVar("Module", bound=LoweredModule)


@dataclass(frozen=True)
class Rolled(Generic[Module]):
    """module: with the loop, or as it was. stacked: name of each stacked argument -> the names of what it stacks, in order; {} without a loop."""

    module: Module
    stacked: Mapping[str, tuple[str, ...]]

    def arrays(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arguments of the rolled module by name, of those of the other: stacked ones are copies."""
        inside = {name for names in self.stacked.values() for name in names}
        made = {name: np.stack([arrays[one] for one in names]) for name, names in self.stacked.items()}
        return {name: array for name, array in arrays.items() if name not in inside} | made


def rolled(module: Module) -> Rolled[Module]:
    """Rolls the longest chain of calls of one function. The module stays as it is."""
    copy = mlir.parse(mlir.bytecode(module.whole), mlir.context())
    with copy.context, ir.Location.unknown():
        (main,) = (
            view for view in copy.body.operations if ir.SymbolTable.get_symbol_name(view.operation).value == "main"
        )
        chain = _longest(main, module.signature)
        if chain is None:
            return Rolled(module, {})
        signature, stacked = _stacked(module.signature, chain)
        _replace(main, chain, signature)
        annotate(main, signature)
        copy.operation.verify()
    tensors = {
        name: np.stack([as_numpy(module.tensors[one]) for one in names])
        for name, names in stacked.items()
        if all(one in module.tensors and is_real(module.tensors[one]) for one in names)
    }
    return Rolled(
        replace(module, module=copy, signature=signature, tensors={**module.tensors, **tensors}, complete=None), stacked
    )


@dataclass(frozen=True)
class _Chain:
    """Calls of one function, each of which takes results of the one before.

    carried: operand -> result of the call before. stacked: operand -> the numbers of main's arguments, one for each call. updates: operand, one of `stacked` ->
    the result that is its new value. The other operands are the same for all.
    """

    calls: Sequence[ir.Operation]
    carried: Mapping[int, int]
    stacked: Mapping[int, tuple[int, ...]]
    updates: Mapping[int, int]


def _longest(main: ir.OpView, signature: Signature) -> _Chain | None:
    """The longest chain in `main`; None where there is none."""
    groups: dict[str, list[ir.Operation]] = {}
    for operation in main.regions[0].blocks[0].operations:
        if operation.operation.name == "func.call":
            groups.setdefault(callee(operation.operation), []).append(operation.operation)
    chains = [_chain(calls, signature) for calls in groups.values() if len(calls) >= SHORTEST]
    return max((chain for chain in chains if chain is not None), key=lambda chain: len(chain.calls), default=None)


def _chain(calls: Sequence[ir.Operation], signature: Signature) -> _Chain | None:
    """The calls as a chain; None where an operand or a result is of another kind than a chain's."""
    carried: dict[int, int] = {}
    stacked: dict[int, tuple[int, ...]] = {}
    for position, first in enumerate(calls[0].operands):
        values = [call.operands[position] for call in calls]
        if all(value == first for value in values):
            continue
        before = [
            result
            for result, _ in enumerate(calls[0].results)
            if all(later == earlier.results[result] for later, earlier in zip(values[1:], calls, strict=False))
        ]
        if before:
            carried[position] = before[0]
        elif all(isinstance(value, ir.BlockArgument) and len(list(value.uses)) == 1 for value in values):
            stacked[position] = tuple(value.arg_number for value in values if isinstance(value, ir.BlockArgument))
        else:
            return None
    updates: dict[int, int] = {}
    for result, _ in enumerate(calls[0].results):
        if result in carried.values():
            if any(_outside(call.results[result], calls) for call in calls[:-1]):
                return None
        elif any(list(call.results[result].uses) for call in calls):
            found = _updated(calls, result, stacked, signature)
            if found is None:
                return None
            updates[found] = result
    for position, numbers in stacked.items():
        arguments = [signature.arguments[number] for number in numbers]
        written_elsewhere = position not in updates and any(one.alias is not None for one in arguments)
        if written_elsewhere or any(one.kind == "input" for one in arguments):  # a caller's arguments stay as they are
            return None
    return _Chain(calls, carried, stacked, updates)


def _outside(value: ir.Value[Any], calls: Sequence[ir.Operation]) -> bool:
    return any(use.owner.operation not in calls for use in value.uses)


def _updated(
    calls: Sequence[ir.Operation], result: int, stacked: Mapping[int, tuple[int, ...]], signature: Signature
) -> int | None:
    """The stacked operand whose new value this result is in every call: `main` returns it alone, aliased to the argument."""
    places = []
    for call in calls:
        uses = list(call.results[result].uses)
        if len(uses) != 1 or uses[0].owner.operation.name != "func.return":
            return None
        places.append(uses[0].operand_number)
    for position, numbers in stacked.items():
        if [signature.arguments[number].alias for number in numbers] == places:
            return position
    return None


def _stacked(signature: Signature, chain: _Chain) -> tuple[Signature, dict[str, tuple[str, ...]]]:
    """The signature with a stacked argument, and a stacked result for an update, after all that stay."""
    inside = {number for numbers in chain.stacked.values() for number in numbers}
    updated = {signature.arguments[number].alias for position in chain.updates for number in chain.stacked[position]}
    kept = [number for number, _ in enumerate(signature.arguments) if number not in inside]
    results = [number for number, _ in enumerate(signature.results) if number not in updated]
    places = {number: place for place, number in enumerate(results)}
    arguments = [
        replace(one, alias=places.get(one.alias) if one.alias is not None else None)
        for one in (signature.arguments[number] for number in kept)
    ]
    made = [
        replace(one, alias=kept.index(one.alias) if one.alias is not None else None)
        for one in (signature.results[number] for number in results)
    ]
    stacked: dict[str, tuple[str, ...]] = {}
    for position, numbers in chain.stacked.items():
        parts = [signature.arguments[number] for number in numbers]
        name = f"{parts[0].name}..{parts[-1].name}"
        stacked[name] = tuple(one.name for one in parts)
        shape = (len(parts), *parts[0].shape)
        alias = None
        if position in chain.updates:
            alias = len(made)
            made.append(Result(f"{name}.updated", shape, parts[0].dtype, len(arguments)))
        arguments.append(Argument(name, parts[0].kind, shape, parts[0].dtype, alias))
    structure = signature.structure and signature.structure.numbered(places)
    return replace(signature, arguments=tuple(arguments), results=tuple(made), structure=structure), stacked


def _replace(main: ir.OpView, chain: _Chain, signature: Signature) -> None:
    """Puts the loop in the place of the calls, and changes what `main` takes and returns."""
    block, calls = main.regions[0].blocks[0], chain.calls
    types = {position: _stack_of(calls[0].operands[position].type, len(calls)) for position in chain.stacked}
    stacks = {position: block.add_argument(type_, ir.Location.unknown()) for position, type_ in types.items()}
    with ir.InsertionPoint(calls[-1]):
        loop = _loop(chain, stacks)
    carried = {result: loop.results[1 + place] for place, result in enumerate(dict.fromkeys(chain.carried.values()))}
    first = 1 + len(carried)
    new = {position: loop.results[first + place] for place, position in enumerate(chain.stacked)}
    for result, value in carried.items():
        calls[-1].results[result].replace_all_uses_with(value)
    end = list(block.operations)[-1].operation
    dropped = {
        use.operand_number for call in calls for result in chain.updates.values() for use in call.results[result].uses
    }
    outputs = [value for number, value in enumerate(end.operands) if number not in dropped]
    outputs += [new[position] for position in chain.stacked if position in chain.updates]
    with ir.InsertionPoint(end), end.location:
        func.ReturnOp(outputs)
    end.erase()
    for call in reversed(calls):
        call.erase()
    for number in sorted((one for numbers in chain.stacked.values() for one in numbers), reverse=True):
        block.erase_argument(number)
    inputs = [argument.type for argument in block.arguments]
    main.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(inputs, [value.type for value in outputs]))
    assert len(inputs) == len(signature.arguments) and len(outputs) == len(signature.results)


def _loop(chain: _Chain, stacks: Mapping[int, ir.Value[Any]]) -> ir.Operation:
    """The loop at the insertion point. Its values: the layer's number, what is carried, the stacks, and what is the same for all layers."""
    first, calls = chain.calls[0], chain.calls
    results = list(dict.fromkeys(chain.carried.values()))
    begins = {result: next(one for one, found in chain.carried.items() if found == result) for result in results}
    same = [one for one, _ in enumerate(first.operands) if one not in chain.carried and one not in chain.stacked]
    values = [
        _number(0),
        *(first.operands[begins[result]] for result in results),
        *stacks.values(),
        *(first.operands[one] for one in same),
    ]
    types = [value.type for value in values]
    loop = stablehlo.WhileOp(types, values)
    condition = loop.regions[0].blocks.append(*types)
    with ir.InsertionPoint(condition):
        direction = stablehlo.ComparisonDirectionAttr.get("LT")
        stablehlo.return_([stablehlo.compare(condition.arguments[0], _number(len(calls)), direction)])
    body = loop.regions[1].blocks.append(*types)
    with ir.InsertionPoint(body), first.location:
        layer, *rest = body.arguments
        remaining = iter(rest)
        operands: dict[int, ir.Value[Any]] = {}
        carried = {result: next(remaining) for result in results}
        operands |= {position: carried[result] for position, result in chain.carried.items()}
        whole = {position: next(remaining) for position in stacks}
        operands |= {position: _slice(stack, layer) for position, stack in whole.items()}
        operands |= dict(zip(same, remaining, strict=True))
        symbol = ir.FlatSymbolRefAttr.get(callee(first))
        call = func.CallOp(
            [one.type for one in first.results], symbol, [operands[one] for one in range(len(first.operands))]
        )
        for position, result in chain.updates.items():
            whole[position] = _update(whole[position], call.results[result], layer)
        ends = [
            stablehlo.add(layer, _number(1)),
            *(call.results[result] for result in results),
            *whole.values(),
            *(operands[one] for one in same),
        ]
        stablehlo.return_(ends)
    return loop.operation


def _number(value: int) -> ir.Value[Any]:
    return full((), torch.int32, value).ir


def _stack_of(type_: ir.Type, layers: int) -> ir.Type:
    one = ir.RankedTensorType(type_)
    return ir.RankedTensorType.get((layers, *one.shape), one.element_type)


def _starts(layer: ir.Value[Any], rank: int) -> Iterator[ir.Value[Any]]:
    yield layer
    if rank:
        yield from [_number(0)] * rank


def _slice(stack: ir.Value[Any], layer: ir.Value[Any]) -> ir.Value[Any]:
    """A layer's own of a stack."""
    type_ = ir.RankedTensorType(stack.type)
    shape = tuple(type_.shape[1:])
    sizes = ir.DenseI64ArrayAttr.get([1, *shape])
    part = stablehlo.dynamic_slice(stack, list(_starts(layer, len(shape))), sizes)
    return stablehlo.reshape(ir.RankedTensorType.get(shape, type_.element_type), part)


def _update(stack: ir.Value[Any], part: ir.Value[Any], layer: ir.Value[Any]) -> ir.Value[Any]:
    """The stack with a layer's new own."""
    type_ = ir.RankedTensorType(part.type)
    shape = tuple(type_.shape)
    one = stablehlo.reshape(ir.RankedTensorType.get((1, *shape), type_.element_type), part)
    return stablehlo.dynamic_update_slice(stack, one, list(_starts(layer, len(shape))))
