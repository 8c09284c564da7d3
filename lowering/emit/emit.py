"""From a Program to StableHLO: walks the graph once, asks the rule of each op, checks what the rule built.

Comes in: a Program that passed the contract, and numbers for its symbols. Goes out: an HloModule.
Guaranteed: every result has the type that the graph states; every op carries the user's file and line and the
module path as its location; arguments that the program updates are aliased to their results; the module verifies.
What rules refuse is collected: emission goes on with values in place of what is missing, and ends in one error with all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import fx

from ...passes.contract import SILENT, Missing, cannot_be_lowered, is_symbolic
from ...passes.mlir import context, func, ir
from ...passes.program import Program, module_path, source_of, where
from ...passes.torch_private import FakeTensor, pytree
from ...runtime.core.errors import FxhloError
from ...runtime.core.signature import Argument, Result, Signature
from ..build import array, full
from ..errors import LoweringError
from ..module import HloModule, as_numpy
from ..registry import find_rule, overload_name
from ..types import TensorType, Value, mlir_type, numpy_dtype
from .context import Context
from .dims import Binding


def emit(program: Program, bindings: Mapping[str, int] | None = None) -> HloModule:
    """Emits `program` with its symbolic dimensions bound (those not named take the size seen at capture)."""
    return Emitter(program, Binding(program, bindings)).module()


def refused(program: Program, bindings: Mapping[str, int] | None = None) -> tuple[Missing, ...]:
    """Everything that the rules refuse, or that has none: by an emission whose module is thrown away."""
    emitter = Emitter(program, Binding(program, bindings))
    try:
        emitter.module()
    except FxhloError:
        if not emitter.refusals:
            raise
    return emitter.refusals_by_op()


class NotEmitted(Exception):
    """A graph's result hangs on an op that was refused."""


UNKNOWN = object()
"""Stands for what a refused op would have given, where its type is not known either; what takes it is passed over."""


class Emitter:
    """One emission: the MLIR module under construction and what is shared between its functions."""

    def __init__(self, program: Program, binding: Binding) -> None:
        self.program = program
        self.binding = binding
        self.context = context()
        self.functions: dict[object, str] = {}  # composites' bodies by (kernel, types, attributes)
        self.jax_results: dict[object, list[tuple[tuple[int, ...], torch.dtype]]] = {}
        self.refusals: list[tuple[fx.Node, FxhloError]] = []
        self._locations: dict[tuple, ir.Location] = {}

    def module(self) -> HloModule:
        signature = self._signature()
        with self.context, ir.Location.unknown():
            module = ir.Module.create()
            module.operation.attributes["sym_name"] = ir.StringAttr.get(_symbol(self.program.name))
            self.block = module.body
            with ir.InsertionPoint(self.block):
                self._main(signature)
            try:
                module.operation.verify()
            except ir.MLIRError as problem:
                raise LoweringError(
                    f"the emitted module does not verify: {problem}", next_step="report this as a bug of fxhlo"
                ) from problem
        return HloModule(
            module=module,
            signature=signature,
            bindings=dict(self.binding.sizes),
            tensors=self.program.tensors,
            name=self.program.name,
        )

    # -- the signature ---------------------------------------------------------------------------------------------

    def _signature(self) -> Signature:
        output = next(node for node in self.program.graph.nodes if node.op == "output")
        updates = {result.updates: index for index, result in enumerate(self.program.results) if result.updates}
        arguments = []
        for node, argument in zip(self.program.placeholders, self.program.arguments, strict=True):
            if isinstance(node.meta["val"], torch.Tensor):
                type_ = self.type_of(node.meta["val"])
                arguments.append(
                    Argument(
                        argument.name,
                        argument.kind,
                        type_.shape,
                        numpy_dtype(type_.dtype).name,
                        updates.get(argument.name),
                    )
                )
        position = {argument.name: index for index, argument in enumerate(arguments)}
        results = []
        for value, result in zip(output.args[0], self.program.results, strict=True):
            type_ = self._output_type(value)
            results.append(
                Result(result.name, type_.shape, numpy_dtype(type_.dtype).name, position.get(result.updates or ""))
            )
        return Signature(tuple(arguments), tuple(results))

    def _output_type(self, value: Any) -> TensorType:
        val = value.meta["val"] if isinstance(value, fx.Node) else value
        if isinstance(val, torch.Tensor):
            return self.type_of(val)
        return TensorType((), torch.tensor(self.binding.number(val)).dtype)

    def type_of(self, tensor: torch.Tensor) -> TensorType:
        """The static type behind a fake tensor."""
        return TensorType(self.binding.shape(tensor), tensor.dtype)

    # -- functions -------------------------------------------------------------------------------------------------

    def _main(self, signature: Signature) -> None:
        nodes = [node for node in self.program.placeholders if isinstance(node.meta["val"], torch.Tensor)]
        types = [self.type_of(node.meta["val"]) for node in nodes]
        output = next(node for node in self.program.graph.nodes if node.op == "output")
        result_types = [mlir_type(*self._output_type(value)) for value in output.args[0]]
        function = func.FuncOp("main", ([mlir_type(*type_) for type_ in types], result_types))
        function.attributes["sym_visibility"] = ir.StringAttr.get("public")
        annotate(function, signature)
        block = function.add_entry_block()  # type: ignore[attr-defined]  # not in the stubs
        values = {
            node: Value(argument, *type_) for node, argument, type_ in zip(nodes, block.arguments, types, strict=True)
        }
        with ir.InsertionPoint(block):
            with suppress(NotEmitted):
                results = self.graph(self.program.graph, self.program.module, values)
            self._raise_refusals()
            func.ReturnOp([result.ir for result in results])

    def _raise_refusals(self) -> None:
        """What the rules refused: the one error, or all of them in one."""
        if len(self.refusals) == 1:
            raise self.refusals[0][1]
        if self.refusals:
            raise cannot_be_lowered(self.refusals_by_op())

    def refusals_by_op(self) -> tuple[Missing, ...]:
        """The refusals, those of one op and for one reason together."""
        found: dict[tuple[str, str], list[str | None]] = {}
        for node, problem in self.refusals:
            reason = problem.message + (f": {problem.next_step}" if problem.next_step else "")
            found.setdefault((overload_name(node.target), reason), []).append(problem.where or where(node))
        return tuple(Missing(name, len(places), places[0], reason=reason) for (name, reason), places in found.items())

    def graph(self, graph: fx.Graph, owner: torch.nn.Module, values: dict[fx.Node, Value]) -> list[Value]:
        """Emits the nodes of `graph` at the insertion point; `values` holds its placeholders. Returns its outputs."""
        environment: dict[fx.Node, Any] = dict(values)
        for node in graph.nodes:
            if node in environment:
                continue
            if node.op == "output":
                return [self._output(value, environment) for value in _flat(node.args[0])]
            if node.op == "get_attr":
                environment[node] = self._attribute(owner, node)
            elif node.op == "placeholder" and not is_symbolic(node):
                environment[node] = node.meta["val"]  # None, or a string: torch.export has taken its value in
            elif is_symbolic(node):
                environment[node] = self._number(node)
            elif node.op == "call_function":
                environment[node] = self._call(node, environment)
            else:
                raise LoweringError(
                    f"the graph holds a {node.op} node ({node}), which only traced graphs of torch do not",
                    where=where(node),
                )
        raise AssertionError("a graph without an output node")

    def function(self, key: object, name: str, module: fx.GraphModule, types: Sequence[TensorType]) -> str:
        """Emits `module` (a traced graph over tensors) as a private function, once per `key`. Returns its symbol."""
        if key in self.functions:
            return self.functions[key]
        symbol = f"{_symbol(name)}_{len(self.functions)}"
        self.functions[key] = symbol
        nodes = [node for node in module.graph.nodes if node.op == "placeholder"]
        output = next(node for node in module.graph.nodes if node.op == "output")
        result_types = [mlir_type(*self._output_type(value)) for value in _flat(output.args[0])]
        with ir.InsertionPoint(self.block), ir.Location.name(symbol):
            function = func.FuncOp(symbol, ([mlir_type(*type_) for type_ in types], result_types))
            function.attributes["sym_visibility"] = ir.StringAttr.get("private")
            block = function.add_entry_block()  # type: ignore[attr-defined]  # not in the stubs
            values = {
                node: Value(argument, *type_)
                for node, argument, type_ in zip(nodes, block.arguments, types, strict=True)
            }
            with ir.InsertionPoint(block):
                func.ReturnOp([result.ir for result in self.graph(module.graph, module, values)])
        return symbol

    # -- nodes -----------------------------------------------------------------------------------------------------

    def _call(self, node: fx.Node, environment: Mapping[fx.Node, Any]) -> Any:
        target = node.target
        name = overload_name(target)
        if name in SILENT:
            return None
        args: Any = fx.map_arg(node.args, lambda n: environment[n])
        kwargs = fx.map_arg(node.kwargs, lambda n: environment[n])
        if name == "_operator.getitem":
            return args[0] if args[0] is UNKNOWN else args[0][args[1]]
        rule = find_rule(target)
        if self.refusals and any(leaf is UNKNOWN for leaf in pytree.tree_leaves((args, kwargs))):
            return self._stand_in(node)
        try:
            if rule is None:
                raise LoweringError(f"{name} has no rule", next_step="lower-model check lists all that is missing")
            ctx = Context(self._result_types(node.meta["val"]), target_op=name, emitter=self)
            with self._location(node):
                results = rule(ctx, *args, **kwargs)
            self._verify(node, name, results, ctx)
        except NotEmitted:
            return self._stand_in(node)
        except FxhloError as problem:
            problem.where = problem.where or where(node)
            return self._refuse(node, problem)
        except Exception as problem:
            error = LoweringError(
                f"the rule of {name} failed: {type(problem).__name__}: {problem}",
                where=where(node),
                next_step="report this as a bug of fxhlo",
            )
            error.__cause__ = problem
            return self._refuse(node, error)
        return results

    def _number(self, node: fx.Node) -> Any:
        try:
            return self.binding.number(node.meta["val"])
        except FxhloError as problem:  # it depends on data
            return self._refuse(node, problem)

    def _refuse(self, node: fx.Node, problem: FxhloError) -> Any:
        """Notes a refusal, and goes on: everything that is refused is said at once."""
        if not any(problem is other for _, other in self.refusals):
            self.refusals.append((node, problem))
        return self._stand_in(node)

    def _stand_in(self, node: fx.Node) -> Any:
        """Values of the types that the graph states, in place of what was not emitted; UNKNOWN where there are none."""
        val = node.meta["val"]
        if not isinstance(val, torch.Tensor | tuple | list):
            return UNKNOWN
        try:
            made = [
                UNKNOWN if type_ is None else full(type_.shape, type_.dtype, 0) for type_ in self._result_types(val)
            ]
        except FxhloError:  # sizes that depend on data, dtypes that StableHLO lacks
            return UNKNOWN
        return made[0] if isinstance(val, torch.Tensor) else made

    def _result_types(self, val: Any) -> tuple[TensorType | None, ...]:
        vals = val if isinstance(val, tuple | list) else (val,)
        return tuple(self.type_of(entry) if isinstance(entry, torch.Tensor) else None for entry in vals)

    def _verify(self, node: fx.Node, name: str, results: Any, ctx: Context) -> None:
        """The rule's results against the types that the graph states: a mistake stops at its own op."""
        built = results if isinstance(results, tuple | list) else (results,)
        for result, type_ in zip(built, ctx.results, strict=False):
            if type_ is not None and (not isinstance(result, Value) or result.type != type_):
                got = f"{list(result.shape)} {result.dtype}" if isinstance(result, Value) else repr(result)
                raise LoweringError(
                    f"the rule of {name} built {got} where the graph says {list(type_.shape)} {type_.dtype}",
                    where=where(node),
                    next_step="correct the rule: see docs/add_an_op.md",
                )

    def _output(self, value: Any, environment: Mapping[fx.Node, Any]) -> Value:
        value = environment[value] if isinstance(value, fx.Node) else value
        if value is UNKNOWN:
            raise NotEmitted
        if isinstance(value, Value):
            return value
        number = self.binding.number(value)
        return full((), torch.tensor(number).dtype, number)

    def _attribute(self, owner: torch.nn.Module, node: fx.Node) -> Any:
        value: Any = owner
        for part in str(node.target).split("."):
            value = getattr(value, part)
        if isinstance(value, torch.Tensor):
            return constant(value, where(node))
        return value  # a subgraph of control flow

    def _location(self, node: fx.Node) -> ir.Location:
        source, path = source_of(node), module_path(node)
        key = (source, path)
        if key not in self._locations:
            location = (
                ir.Location.file(source[0], source[1], 0, self.context) if source else ir.Location.unknown(self.context)
            )
            self._locations[key] = ir.Location.name(path, location, self.context) if path else location
        return self._locations[key]


def constant(tensor: torch.Tensor, at: str | None = None) -> Value:
    """A tensor that the graph holds, as a constant of the module."""
    if isinstance(tensor, FakeTensor):
        raise LoweringError("a constant of the graph has no values (it was captured as a fake tensor)", where=at)
    return array(as_numpy(tensor), tensor.dtype)


def annotate(function: ir.OpView, signature: Signature) -> None:
    """Names and aliasing on the public function: what PJRT needs to donate, and a reader to follow."""
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


def _flat(outputs: Any) -> Sequence[Any]:
    return outputs if isinstance(outputs, tuple | list) else (outputs,)


def _symbol(name: str) -> str:
    return "".join(char if char.isalnum() or char == "_" else "_" for char in name)
