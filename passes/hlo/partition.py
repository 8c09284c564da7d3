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
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise

from ...kernels.catalog import kernels
from ...kernels.partition import Lying, Partition, along
from ...kernels.spec import Implementation, Kernel, Operands, TensorSpec
from ...runtime.core.errors import SignatureError, UnsupportedError
from ...runtime.core.sharding import REPLICATED, Sharding, Split
from ...runtime.core.sharding import along as piece
from ...runtime.core.signature import Argument, Result, Signature
from ...runtime.core.targets import Target
from ..mlir import context, erase_dead_functions, func, ir, parse, stablehlo
from .calls import callee
from .composite import Composite, composites, operations
from .layouts import pin_row_major
from .legalize import Decision, lowered
from .plan import NEXT_STEP, Plan
from .product import product
from .propagate import propagated, shape_of
from .shardy import Collectives, Value, after, annotate, constrained, constraint, declare, local_type, manual
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
    """The signature on the mesh: fused weights have their arranged shapes, an updated state lies as the state does."""
    arguments: list[Argument] = []
    for argument in signature.arguments:
        split = plan.weights.get(argument.name)
        shape = argument.shape if split is None else split.shape(argument.shape, plan.mesh)
        arguments.append(replace(argument, shape=shape, sharding=plan.sharding(argument.name)))
    results: list[Result] = [
        result if result.alias is None else replace(result, sharding=arguments[result.alias].sharding)
        for result in signature.results
    ]
    return replace(signature, arguments=tuple(arguments), results=tuple(results), mesh=plan.mesh)


@dataclass
class _Fused:
    """A product with a weight of several matrices: its columns are pieces, device by device.

    values: the product with each matrix, [rows, its size]; joined: their columns in the model's order. Both are made when they
    are asked for.
    """

    product: Value
    split: Split
    values: list[Value] = field(default_factory=list)
    joined: Value | None = None


class _Partitioner:
    """One partitioning of `main`, from its first op to its last.

    lying: how values lie; those that are not in it are whole on every device, or nothing is known of them. whole: copies of split
    values that are whole. symbols: the function that serves each kind of composite. row_major: operand types to pin.
    """

    def __init__(self, module: ir.Module, signature: Signature, plan: Plan, target: Target) -> None:
        self.module, self.signature, self.plan, self.target = module, signature, plan, target
        self.mesh = plan.mesh
        self.collectives = Collectives(plan.mesh)
        self.functions = ir.SymbolTable(module.operation)
        self.lying: dict[Value, Sharding] = {}
        self.fused: dict[Value, _Fused] = {}
        self.weights: dict[Value, Split] = {}
        self.whole: dict[Value, Value] = {}
        self.symbols: dict[object, str] = {}
        self.decisions: dict[object, Decision] = {}
        self.row_major: set[str] = set()
        self.sampling: dict[ir.Operation, Sampling | None] = {}

    def run(self) -> None:
        main = self.functions["main"].operation
        block = main.regions[0].blocks[0]
        for value, argument in zip(block.arguments, self.signature.arguments, strict=True):
            self.lying[value] = argument.sharding
            if argument.name in self.plan.weights:
                self.weights[value] = self.plan.weights[argument.name]
                value.set_type(_typed(argument.shape, value))
        for operation in list(block.operations):
            self.visit(operation.operation)
        results = ir.FunctionType(ir.TypeAttr(main.attributes["function_type"]).value).results
        kinds = ir.FunctionType.get([value.type for value in block.arguments], results)
        main.attributes["function_type"] = ir.TypeAttr.get(kinds)
        for operation in composites(self.module.operation):  # inside control flow
            self._call_reference(operation)

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
        if operation.name == "stablehlo.slice" and (part := self._part(operation)) is not None:
            return _replaced(operation, [part])
        for index, operand in enumerate(operation.operands):
            operation.operands[index] = self._in_order(operand, operation)
        operands = [self.lying.get(operand, REPLICATED) for operand in operation.operands]
        found = propagated(operation, operands, self.mesh)
        if found is not None:
            self.lying.update((result, found) for result in operation.results)
        elif operation.name == "stablehlo.slice":  # across devices, as of padded logits
            operation.operands[0] = self._whole(operation.operands[0])
        elif operation.name == "stablehlo.gather" and any(operands[0].dimensions[:1]):
            # rows of a table that is split by its rows: each device has some of them, and the devices' sum has all
            with after(operation.results[0]):
                made = constraint(operation.results[0], REPLICATED)
            operation.results[0].replace_all_uses_except(made.result, made.operation)
            return [made.result]
        return list(operation.results)

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
        for name, value in named.items():
            if name not in rule.pieces:
                named[name] = self._in_order(value, operation)
        local = self._local(composite, named, rule)
        implementation, reasons = kernel.choice(local, composite.attributes, self.target)
        self._note(composite, local, implementation, reasons)
        with ir.InsertionPoint(operation), operation.location:
            if implementation is not None:
                results = self._manual(composite, kernel, implementation, named, local, rule)
            elif kernel.name == "linear":
                rule = self._over_tokens(named, rule)
                given = {name: self._lain(value, rule.operands.get(name)) for name, value in named.items()}
                results = [product(given["values"], given["weight"], given.get("bias"), rule.results[0])]
            else:
                results = self._inlined(composite, named, rule)
        split = self.weights.get(named["weight"]) if kernel.name == "linear" else None
        if split is not None and split.parts:
            self.fused[results[0]] = _Fused(results[0], split)
        self.lying.update(zip(results, rule.results, strict=True))
        return results

    def _lying(self, value: Value) -> Lying:
        parts = self.fused[value].split.parts if value in self.fused else ()
        equal = len({(part.size, part.axes) for part in parts}) == 1
        return Lying(shape_of(value), self.lying.get(value, REPLICATED), len(parts) if equal else 1)

    def _local(self, composite: Composite, named: Mapping[str, Value], rule: Partition) -> Operands:
        """The operands of one device. Raises UnsupportedError where one does not divide."""
        specs = []
        for name, value in named.items():
            sharding = rule.operands.get(name, REPLICATED)
            try:
                shape = sharding.shard(shape_of(value), self.mesh)
            except SignatureError as problem:
                raise UnsupportedError(f"{composite.name}, {name}: {problem.message}", next_step=NEXT_STEP) from problem
            specs.append(TensorSpec(shape, composite.operands.named[name].dtype))
        return Operands.of(named, specs)

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
        self,
        composite: Composite,
        kernel: Kernel,
        implementation: Implementation,
        named: Mapping[str, Value],
        local: Operands,
        rule: Partition,
    ) -> list[Value]:
        """A region in which each device calls the implementation with its parts."""
        symbol = self._function(composite, kernel, implementation, local)
        self.row_major |= {str(named[name].type) for name in implementation.row_major if name in named}
        types = self._result_types(composite, named)
        locals_ = [local_type(type_, one, self.mesh) for type_, one in zip(types, rule.results, strict=True)]

        def body(values: list[Value]) -> list[Value]:
            given = [self._given(name, value, named, rule) for name, value in zip(named, values, strict=True)]
            made: list[Value] = list(func.CallOp(locals_, ir.FlatSymbolRefAttr.get(symbol), given).results)
            return [self.collectives.sum(value, rule.summed) for value in made] if rule.summed else made

        operands = []
        for name, value in named.items():
            sharding = rule.operands.get(name, REPLICATED)
            split = sharding.replicated and not self.lying.get(value, REPLICATED).replicated
            operands.append((self._whole(value) if split else value, sharding))
        return manual(operands, list(zip(types, rule.results, strict=True)), self.mesh, body)

    def _function(
        self, composite: Composite, kernel: Kernel, implementation: Implementation, operands: Operands
    ) -> str:
        """The symbol of the implementation for these operands."""
        key = _key(composite, operands)
        if key not in self.symbols:
            number = len(self.symbols)
            self.symbols[key] = lowered(
                kernel, implementation, operands, composite.attributes, self.target, self.module, number
            )
        return self.symbols[key]

    def _given(self, name: str, value: Value, named: Mapping[str, Value], rule: Partition) -> Value:
        """One device's operand, as the kernel takes it."""
        if name in rule.once:
            return self.collectives.once(value, rule.summed)
        if name in rule.counted:
            other = rule.counted[name]
            return self.collectives.counted(value, shape_of(named[other])[0], rule.operands[other].dimensions[0])
        return value

    def _result_types(self, composite: Composite, named: Mapping[str, Value]) -> list[ir.Type]:
        """The composite's; of a product, by the weight as it is arranged."""
        types = [result.type for result in composite.operation.results]
        if composite.name != "fxhlo.linear":
            return types
        return [_typed((shape_of(named["values"])[0], shape_of(named["weight"])[0]), composite.operation.results[0])]

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
            sharding = rule.operands.get(name, REPLICATED)
            split = sharding.replicated and not self.lying.get(value, REPLICATED).replicated
            operands.append(self._whole(value) if split else value)
            if value in self.weights:
                self._in_order(value, composite.operation)
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
        sharding = self.lying.get(composite.operation.operands[0], REPLICATED)
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
            return self._function(composite, kernel, implementation, operands)
        return composite.decomposition if operands is composite.operands else None

    def _helper(self, name: str, operands: Operands) -> str:
        """A function of kernels/sample/xla_split.py."""
        from ...kernels.sample import xla_split

        key = (name, tuple((spec.shape, spec.dtype.name) for spec in operands))
        if key not in self.symbols:
            implementation = Implementation("any", name, getattr(xla_split, name))
            self.symbols[key] = lowered(
                kernels()["fxhlo.sample"], implementation, operands, {}, self.target, self.module, len(self.symbols)
            )
        return self.symbols[key]

    # -- values ------------------------------------------------------------------------------------------------------

    def _whole(self, value: Value) -> Value:
        """The value with all of it on every device; made once."""
        if value not in self.whole:
            with after(value):
                self.whole[value] = constrained(value, REPLICATED)
        return self.whole[value]

    def _part(self, operation: ir.Operation) -> Value | None:
        """The product with one matrix, where the slice of a fused product is just that."""
        fused = self.fused.get(operation.operands[0])
        if fused is None:
            return None
        starts, limits, strides = (
            list(ir.DenseI64ArrayAttr(operation.attributes[name]))
            for name in ("start_indices", "limit_indices", "strides")
        )
        ends = list(accumulate(part.size for part in fused.split.parts))
        wanted = [([0, end - part.size], end) for part, end in zip(fused.split.parts, ends, strict=True)]
        rows = shape_of(fused.product)[0]
        if strides != [1, 1] or limits[0] != rows or (starts, limits[1]) not in wanted:
            return None
        return self._pieces(fused)[wanted.index((starts, limits[1]))]

    def _pieces(self, fused: _Fused) -> list[Value]:
        """The product with each matrix, as every device takes it from its columns."""
        if not fused.values:
            rows, parts = shape_of(fused.product)[0], fused.split.parts
            element = ir.RankedTensorType(fused.product.type).element_type
            ends = [0, *accumulate(piece(part, self.mesh) for part in parts)]
            results = [(ir.RankedTensorType.get([rows, part.size], element), along(2, 1, part.axes)) for part in parts]

            def body(values: list[Value]) -> list[Value]:
                bounds = [([0, start], [rows, end], [1, 1]) for start, end in pairwise(ends)]
                return [stablehlo.slice(values[0], *map(ir.DenseI64ArrayAttr.get, one)) for one in bounds]

            sharding = along(2, 1, fused.split.axes)
            with after(fused.product):
                fused.values = manual([(fused.product, sharding)], results, self.mesh, body)
            self.lying.update(zip(fused.values, (sharding for _, sharding in results), strict=True))
        return fused.values

    def _in_order(self, value: Value, user: ir.Operation) -> Value:
        """The value for an op that knows nothing of pieces. Raises UnsupportedError for a fused weight."""
        if value in self.weights and self.weights[value].parts:
            name = self.signature.arguments[ir.BlockArgument(value).arg_number].name
            raise UnsupportedError(
                f"{name} has several matrices and is read by {user.name}, so that it cannot be split",
                next_step=NEXT_STEP,
            )
        return self._joined(value, user) if value in self.fused else value

    def _joined(self, value: Value, user: ir.Operation) -> Value:
        """The columns of a fused product in the model's order, all of them on every device."""
        fused = self.fused[value]
        if fused.joined is None:
            parts = [self._whole(part) for part in self._pieces(fused)]
            with ir.InsertionPoint(user), user.location:
                fused.joined = stablehlo.concatenate(parts, 1)
        return fused.joined


def _key(composite: Composite, local: Operands) -> object:
    """Equal for two calls that one function of one device can serve."""
    return (*composite.key, tuple((spec.shape, spec.dtype.name) for spec in local))


def _typed(shape: Sequence[int], like: Value) -> ir.Type:
    return ir.RankedTensorType.get(list(shape), ir.RankedTensorType(like.type).element_type)


def _replaced(operation: ir.Operation, values: list[Value]) -> list[Value]:
    """Puts the values in the place of the op's results, and erases it."""
    for old, new in zip(operation.results, values, strict=True):
        old.replace_all_uses_with(new)
    operation.erase()
    return values
