"""Partition: makes a portable module one that runs on a mesh, where every device has a part of the weights and states.

Comes in: a portable module, its signature, and a `Plan`: how each weight and state lies. Goes out: a module without composites,
whose arguments and results carry Shardy's attributes, and its signature on the mesh. A composite becomes a region that each device
runs with its parts, by its kernel's partition rule; where the target has no implementation of it, its reference stands in the module
and XLA partitions it, as it does every other op. Matrices that are fused in one weight stay one product: a device has its piece of
each, and takes the result apart by itself.
Guaranteed: a composite whose kernel has no rule is refused; nothing compiles here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ...kernels.catalog import kernels
from ...kernels.partition import Lying, Partition, along
from ...kernels.spec import Implementation, Kernel, Operands
from ...runtime.core.errors import UnsupportedError
from ...runtime.core.sharding import REPLICATED, Sharding, Split
from ...runtime.core.signature import Signature
from ...runtime.core.targets import Target
from ..mlir import context, erase_dead_functions, func, ir, parse
from .calls import callee
from .composite import Composite, composites, operations
from .context import over_context
from .layouts import pin_row_major
from .legalize import Decision, lowered
from .pieces import Values
from .plan import NEXT_STEP, Plan
from .product import product
from .propagate import propagated, shape_of
from .requests import over_requests
from .shardy import Collectives, Value, after, annotate, constrained, constraint, declare, local_type, manual
from .shares import Share
from .vocabulary import Sampling


@dataclass(frozen=True)
class Partitioned:
    """The module for one target and mesh, its signature, and what was decided for each kind of composite."""

    module: ir.Module
    signature: Signature
    decisions: tuple[Decision, ...]


def partition(module: bytes, signature: Signature, plan: Plan, target: str | Target) -> Partitioned:
    """Partitions a portable module (MLIR bytecode, text or an artifact). Raises UnsupportedError, LegalizeError, SignatureError."""
    parsed = parse(module, context())
    made = _signature(signature, plan)
    with parsed.context, ir.Location.unknown():
        declare(parsed, plan.mesh)
        work = _Partitioner(parsed, made, plan, Target.parse(target))
        work.run()
        erase_dead_functions(parsed)
        if work.row_major:
            pin_row_major(parsed, work.row_major)
        annotate(parsed, made)
        parsed.operation.verify()
    return Partitioned(parsed, made, tuple(work.decisions.values()))


def _signature(signature: Signature, plan: Plan) -> Signature:
    """The signature on the mesh: arguments with pieces have their arranged shapes, an updated state lies as the state does."""
    arguments = [
        replace(one, shape=plan.shape(one.name, one.shape), sharding=plan.sharding(one.name))
        for one in signature.arguments
    ]
    results = [
        replace(result, shape=arguments[result.alias].shape, sharding=arguments[result.alias].sharding)
        if result.alias is not None
        else result
        for result in signature.results
    ]
    return replace(signature, arguments=tuple(arguments), results=tuple(results), mesh=plan.mesh)


class _Partitioner:
    """One partitioning of `main`, from its first op to its last.

    symbols: the function that serves each kind of composite. row_major: operand types to pin.
    """

    def __init__(self, module: ir.Module, signature: Signature, plan: Plan, target: Target) -> None:
        self.module, self.signature, self.plan, self.target = module, signature, plan, target
        self.mesh = plan.mesh
        self.collectives = Collectives(plan.mesh)
        self.functions = ir.SymbolTable(module.operation)
        self.values = Values(self.collectives)
        self.symbols: dict[object, str] = {}
        self.decisions: dict[object, Decision] = {}
        self.row_major: set[str] = set()
        self.sampling: dict[ir.Operation, Sampling | None] = {}

    def run(self) -> None:
        main = self.functions["main"].operation
        block = main.regions[0].blocks[0]
        for value, argument in zip(block.arguments, self.signature.arguments, strict=True):
            split = self.plan.split(argument.name)
            value.set_type(_typed(argument.shape, value))
            self.values.fuse(value, split, argument.name)
        for operation in list(block.operations)[:-1]:
            self.visit(operation.operation)
        returned = self._returned(block.operations[len(block.operations) - 1].operation)
        kinds = ir.FunctionType.get([value.type for value in block.arguments], returned)
        main.attributes["function_type"] = ir.TypeAttr.get(kinds)
        for operation in composites(self.module.operation):  # inside control flow
            self._call_reference(operation)

    def _returned(self, operation: ir.Operation) -> list[ir.Type]:
        """The types of what `main` returns: states in their pieces, other values in the model's order."""
        with ir.InsertionPoint(operation), operation.location:
            for index, (operand, result) in enumerate(zip(operation.operands, self.signature.results, strict=True)):
                if result.alias is None:
                    operation.operands[index] = self.values.joined(operand, "the program's result")
        return [operand.type for operand in operation.operands]

    def visit(self, operation: ir.Operation) -> list[Value]:
        """Rewrites one op of `main`, or notes how its results lie. Returns what now stands for its results."""
        if operation in self.sampling:
            return self._sample(operation, self.sampling[operation])
        if operation.name == "stablehlo.composite" and (composite := Composite.of(operation)).name in kernels():
            if self._begins_sampling(composite):
                return list(operation.results)
            return _replaced(operation, self._composite(composite))
        if operation.name == "func.call":  # a repeated layer: it is written out, since layers may lie differently
            with ir.InsertionPoint(operation), operation.location:
                return _replaced(operation, self._body_of(callee(operation), list(operation.operands)))
        if (kept := self.values.replacement(operation)) is not None:
            return _replaced(operation, [kept])
        self._in_order(operation)
        operands = [self.values.of(operand) for operand in operation.operands]
        found = propagated(operation, operands, self.mesh)
        if found is not None:
            self.values.lying.update((result, found) for result in operation.results)
        elif operation.name == "stablehlo.slice":  # across devices, as of padded logits
            operation.operands[0] = self.values.whole(operation.operands[0])
        elif operation.name == "stablehlo.gather" and any(operands[0].dimensions[:1]):
            # rows of a table that is split by its rows: each device has some of them, and the devices' sum has all
            with after(operation.results[0]):
                made = constraint(operation.results[0], REPLICATED)
            operation.results[0].replace_all_uses_except(made.result, made.operation)
            return [made.result]
        return list(operation.results)

    def _in_order(self, operation: ir.Operation) -> None:
        """Gives an op that knows nothing of pieces its operands in the model's order."""
        with ir.InsertionPoint(operation), operation.location:
            for index, operand in enumerate(operation.operands):
                operation.operands[index] = self.values.joined(operand, operation.name)

    # -- composites --------------------------------------------------------------------------------------------------

    def _composite(self, composite: Composite) -> list[Value]:
        kernel, operation = kernels()[composite.name], composite.operation
        if kernel.version != composite.version or kernel.partition is None:
            raise UnsupportedError(
                f"fxhlo.{kernel.name} has no partition rule: a program that calls it runs on one device",
                next_step=NEXT_STEP,
            )
        named = dict(zip(composite.operands.named, operation.operands, strict=True))
        rule = kernel.partition({name: self._lying(value) for name, value in named.items()}, self.mesh)
        with ir.InsertionPoint(operation), operation.location:
            split = self._arrange(composite, named, rule)
            types = self._result_types(composite, rule, split)
            share = Share(composite, named, rule, self.collectives)
            local = share.operands()
            implementation, reasons = self._choice(kernel, local, composite, rule)
            self._note(composite, local, implementation, reasons)
            if rule.context:
                results = over_context(share, kernel, local, types, partial(self._lowered, kernel))
            elif rule.requests:
                results = self._over_requests(share, kernel, implementation, local, types)
            elif implementation is not None:
                results = self._manual(share, kernel, implementation, local, types)
            elif kernel.name == "linear":
                rule = self._over_tokens(named, rule)
                given = {name: self._lain(value, rule.operands.get(name)) for name, value in named.items()}
                results = [product(given["values"], given["weight"], given.get("bias"), rule.results[0])]
            else:
                results = self._inlined(composite, named, rule)
        self.values.lying.update(zip(results, rule.results, strict=True))
        if split is not None:
            for index in rule.results_in_pieces:
                self.values.fuse(results[index], _along_of(rule.results[index], split))
        return results

    def _choice(
        self, kernel: Kernel, local: Operands, composite: Composite, rule: Partition
    ) -> tuple[Implementation | None, tuple[str, ...]]:
        """What each device calls; None where the reference stands in the module. And why it is not one before that."""
        if rule.context:
            return None, ("devices that share a context merge what each attended to, in plain StableHLO",)
        if rule.plain:
            return None, ("the devices share a sum of it: XLA partitions the reference",)
        implementation, reasons = kernel.choice(local, composite.attributes, self.target)
        return implementation or kernel.on_a_device, reasons

    def _arrange(self, composite: Composite, named: dict[str, Value], rule: Partition) -> Split | None:
        """Brings the operands into the pieces that the rule takes, at the insertion point, and the others into the model's order. Returns
        these pieces, if any."""
        fused = [self.values.fused[named[name]] for name in rule.pieces if named.get(name) in self.values.fused]
        split = fused[0].split if fused else None
        for name, value in named.items():
            if split is None or name not in rule.pieces:
                named[name] = self.values.joined(value, composite.name)
            else:
                named[name] = self.values.in_pieces(value, split, _dimension(rule.operands[name]))
        return split

    def _lying(self, value: Value) -> Lying:
        parts = self.values.fused[value].split.parts if value in self.values.fused else ()
        equal = len({(part.size, part.axes) for part in parts}) == 1
        return Lying(shape_of(value), self.values.of(value), len(parts) if equal else 1)

    def _note(
        self, composite: Composite, local: Operands, implementation: Implementation | None, reasons: tuple[str, ...]
    ) -> None:
        """Counts the decision. The operands' types are those of one device."""
        key = _key(composite, local)
        if key in self.decisions:
            self.decisions[key] = replace(self.decisions[key], count=self.decisions[key].count + 1)
            return
        types = ", ".join(f"{spec.dtype.name}{list(spec.shape)}" for spec in local)
        name = None if implementation is None else implementation.name
        self.decisions[key] = Decision(composite.name, name, reasons, 1, types)

    def _manual(
        self, share: Share, kernel: Kernel, implementation: Implementation, local: Operands, types: Sequence[ir.Type]
    ) -> list[Value]:
        """A region in which each device calls the implementation with its parts. types: of the results, as a whole."""
        named, rule = share.named, share.rule
        symbol = self._lowered(kernel, implementation, local, share.composite.attributes)
        self.row_major |= {str(named[name].type) for name in implementation.row_major if name in named}
        locals_ = [local_type(type_, one, self.mesh) for type_, one in zip(types, rule.results, strict=True)]

        def body(values: list[Value]) -> list[Value]:
            given = [share.value(name, value) for name, value in zip(named, values, strict=True)]
            made: list[Value] = list(func.CallOp(locals_, ir.FlatSymbolRefAttr.get(symbol), given).results)
            return [self.collectives.sum(value, rule.summed) for value in made] if rule.summed else made

        operands = []
        for name, value in named.items():
            sharding = rule.operands.get(name, REPLICATED)
            split = sharding.replicated and not self.values.of(value).replicated
            operands.append((self.values.whole(value) if split else value, sharding))
        return manual(operands, list(zip(types, rule.results, strict=True)), self.mesh, body)

    def _over_requests(
        self,
        share: Share,
        kernel: Kernel,
        implementation: Implementation | None,
        local: Operands,
        types: Sequence[ir.Type],
    ) -> list[Value]:
        """A region in which each device calls the implementation with the rows of its own requests."""
        if implementation is None:
            raise UnsupportedError(
                f"no implementation of fxhlo.{kernel.name} takes the part of a device that has its own requests",
                next_step="leave out attention_data_parallel",
            )
        symbol = self._lowered(kernel, implementation, local, share.composite.attributes)
        self.row_major |= {str(share.named[name].type) for name in implementation.row_major if name in share.named}
        return over_requests(share, symbol, local, types, partial(self._lowered, kernel))

    def _lowered(
        self, kernel: Kernel, implementation: Implementation, operands: Operands, attributes: Mapping[str, object]
    ) -> str:
        """The symbol of an implementation, which the module gets once for each kind of operands."""
        shapes = tuple((name, spec.shape, spec.dtype.name) for name, spec in operands.named.items())
        key = (kernel.name, implementation.name, shapes, tuple(sorted(attributes.items())))
        if key not in self.symbols:
            number = len(self.symbols)
            self.symbols[key] = lowered(kernel, implementation, operands, attributes, self.target, self.module, number)
        return self.symbols[key]

    def _result_types(self, composite: Composite, rule: Partition, split: Split | None) -> list[ir.Type]:
        """The composite's; of results in pieces, as these lie."""
        types = [result.type for result in composite.operation.results]
        if split is not None:
            for index in rule.results_in_pieces:
                result = composite.operation.results[index]
                shape = _along_of(rule.results[index], split).shape(shape_of(result), self.mesh)
                types[index] = _typed(shape, result)
        return types

    def _over_tokens(self, named: Mapping[str, Value], rule: Partition) -> Partition:
        """The rule of a product that XLA partitions. With many rows the sum over devices leaves each device some of them, and a product
        that is split by its outputs begins with these: XLA for TPUs overlaps both with the products.
        """
        axes = rule.summed or (rule.results[0].dimensions[1] if rule.results[0].dimensions else ())
        parts = math.prod(self.mesh.size(axis) for axis in axes)
        rows = shape_of(named["values"])[0]
        if self.plan.rows is None or parts == 1 or rows % parts or rows // parts < self.plan.rows:
            return replace(rule, operands={})
        spread = along(2, 0, axes)
        if rule.summed:
            return replace(rule, operands={}, results=(spread,))
        return replace(rule, operands={"values": spread})

    def _lain(self, value: Value, sharding: Sharding | None) -> Value:
        """The value, lying as asked; as it is where nothing is."""
        return value if sharding is None else constrained(value, sharding)

    def _inlined(self, composite: Composite, named: Mapping[str, Value], rule: Partition) -> list[Value]:
        """The reference in the composite's place, for XLA to partition; what must be whole is made so."""
        operands = []
        for name, value in named.items():
            value = self.values.joined(value, composite.name)
            sharding = rule.operands.get(name, REPLICATED)
            split = sharding.replicated and not self.values.of(value).replicated
            operands.append(self.values.whole(value) if split else value)
        results = self._body_of(composite.decomposition, operands)
        return [constrained(value, sharding) for value, sharding in zip(results, rule.results, strict=True)]

    def _body_of(self, symbol: str, operands: Sequence[Value]) -> list[Value]:
        """Copies a function's ops to the insertion point, and visits each. Returns what it returns."""
        block = self.functions[symbol].operation.regions[0].blocks[0]
        values = dict(zip(block.arguments, operands, strict=True))
        for operation in block.operations:
            if operation.operation.name == "func.return":
                return [values[operand] for operand in operation.operands]
            copied = operation.operation.clone().operation
            for inner in operations(copied):
                for index, operand in enumerate(inner.operands):
                    if operand in values:
                        inner.operands[index] = values[operand]
            values.update(zip(operation.results, self.visit(copied), strict=True))
        raise AssertionError(f"{symbol} returns nothing")

    def _call_reference(self, operation: ir.Operation) -> None:
        with ir.InsertionPoint(operation), operation.location:
            symbol = ir.FlatSymbolRefAttr.get(Composite.of(operation).decomposition)
            call = func.CallOp([result.type for result in operation.results], symbol, list(operation.operands))
        _replaced(operation, list(call.results))

    # -- sampling ----------------------------------------------------------------------------------------------------

    def _begins_sampling(self, composite: Composite) -> bool:
        """Whether these logits are split by their columns and sampled as vocabulary.py does it, when the last of its composites comes."""
        if composite.name != "fxhlo.process_logits" or not any(self._axes(composite)):
            return False
        sampling = Sampling.beginning(composite)
        if sampling is None:
            return False
        self.sampling |= {sampling.sample.operation: None, sampling.logprobs.operation: sampling}
        return True

    def _axes(self, composite: Composite) -> tuple[str, ...]:
        """The axes that split the columns of a composite's first operand."""
        sharding = self.values.of(composite.operation.operands[0])
        return sharding.dimensions[1] if sharding.dimensions else ()

    def _sample(self, operation: ir.Operation, sampling: Sampling | None) -> list[Value]:
        """Puts the devices' sampling in the place of the three composites, which are left until the last one is visited."""
        if sampling is None:
            return list(operation.results)
        with ir.InsertionPoint(operation), operation.location:
            axes = self._axes(sampling.process)
            made = sampling.parts(self.collectives, axes, self._symbol_for, self._helper)
        if made is None:
            composites_ = (sampling.process, sampling.sample, sampling.logprobs)
            return [_replaced(one.operation, self._composite(one)) for one in composites_][-1]
        tokens, *shown = made
        results = _replaced(operation, shown)
        _replaced(sampling.sample.operation, [tokens])
        sampling.process.operation.erase()
        return results

    def _symbol_for(self, composite: Composite, operands: Operands) -> str | None:
        """The function of the target's implementation for these operands; the reference's, which is for the composite's own alone."""
        kernel = kernels()[composite.name]
        implementation, reasons = kernel.choice(operands, composite.attributes, self.target)
        self._note(composite, operands, implementation, reasons)
        if implementation is not None:
            return self._lowered(kernel, implementation, operands, composite.attributes)
        return composite.decomposition if operands is composite.operands else None

    def _helper(self, name: str, operands: Operands) -> str:
        """A function of kernels/sample/xla_split.py."""
        from ...kernels.sample import xla_split

        implementation = Implementation("any", name, getattr(xla_split, name))
        return self._lowered(kernels()["fxhlo.sample"], implementation, operands, {})


def _key(composite: Composite, local: Operands) -> object:
    """Equal for two calls that one function of one device can serve."""
    return (*composite.key, tuple((spec.shape, spec.dtype.name) for spec in local))


def _dimension(sharding: Sharding) -> int:
    """The one dimension that is split."""
    return next(index for index, axes in enumerate(sharding.dimensions) if axes)


def _along_of(sharding: Sharding, split: Split) -> Split:
    """The pieces of `split` along the one dimension that `sharding` splits."""
    return Split(sharding, _dimension(sharding), split.parts)


def _typed(shape: Sequence[int], like: Value) -> ir.Type:
    return ir.RankedTensorType.get(list(shape), ir.RankedTensorType(like.type).element_type)


def _replaced(operation: ir.Operation, values: list[Value]) -> list[Value]:
    """Puts the values in the place of the op's results, and erases it."""
    for old, new in zip(operation.results, values, strict=True):
        old.replace_all_uses_with(new)
    operation.erase()
    return values
