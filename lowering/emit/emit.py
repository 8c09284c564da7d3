"""Emits a Program as StableHLO: walks the graph once, calls the rule of each op and verifies its results.

Comes in: a Program that passed the contract, and numbers for its symbols. Goes out: an HloModule.
Guaranteed: every result has the type that the graph states; every op carries the user's file and line and the
module path as its location; arguments that the program updates are aliased to their results; the module verifies.
Refusals of rules are collected: emission continues with placeholders for rejected ops' results and ends in one error that lists all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from ...passes.contract import SILENT, Missing, is_symbolic
from ...passes.garbage import uncollected
from ...passes.mlir import context, ir
from ...passes.program import Program, module_path, path_below, source_of, where
from ...passes.repeats import Item, Layer, items_of
from ...passes.torch_private import FakeTensor, pytree
from ...runtime.core.errors import FxhloError
from ..build import array, full
from ..errors import LoweringError
from ..lowered import as_numpy
from ..module import HloModule
from ..registry import find_rule, overload_name
from ..types import TensorType, Value
from .context import Context
from .dims import Binding
from .extents import Tracked, Trail, Unlike
from .functions import Functions, call, emit_function, symbol
from .refusals import Refusals
from .signature import annotate, output_type, signature_of


def emit(
    program: Program, bindings: Mapping[str, int] | None = None, *, flat: bool = False, references: bool = True
) -> HloModule:
    """Emits `program` with its symbolic dimensions bound (those not named take the example's size).

    references: whether composites have their decomposition; without, the module has them where something asks for them
    (`LoweredModule.whole`). flat: every layer in `main`; else repeated layers are calls of one private function for each kind (passes/repeats.py).
    Raises LoweringError or UnsupportedError where one rule refuses, ContractError where several do, GuardError for the bindings.
    """
    with uncollected():
        return _emitted(program, Binding(program, bindings), flat, references)


def _emitted(program: Program, binding: Binding, flat: bool, references: bool) -> HloModule:
    if not flat:
        try:
            return Emitter(program, binding, items_of(program), references).module()
        except RefusedOnce:
            pass  # the flat form names every place
    return Emitter(program, binding, None, references).module()


def emit_tracked(program: Program, binding: Tracked) -> HloModule:
    """`emit` without references, at the stand-ins of `binding`, whose trail says what other sizes change. Raises Unlike; and what `emit` raises,
    of which `emit` knows the places."""
    try:
        with uncollected():
            return Emitter(program, binding, items_of(program), references=False, trail=binding.trail).module()
    except RefusedOnce as problem:
        raise Unlike("a rule refuses") from problem


def refused(program: Program, bindings: Mapping[str, int] | None = None) -> tuple[Missing, ...]:
    """Returns every op that has no rule or whose rule refuses, found by an emission whose module is discarded."""
    emitter = Emitter(program, Binding(program, bindings))
    try:
        emitter.module()
    except FxhloError:
        if not emitter.refusals:
            raise
    return emitter.refusals.by_op()


class NotEmitted(Exception):
    """A result of a graph depends on an op whose rule refused."""


class RefusedOnce(Exception):
    """A rule refused while repeated layers are emitted once, so that its other places are not known."""


UNKNOWN = object()
"""Placeholder for a rejected op's result of unknown type; its users are skipped."""

Environment = dict[fx.Node, object]
"""The value of each node: a Value, a number, a list of them, a region's graph."""


class Emitter:
    """One emission: the MLIR module under construction, and the state that its functions share.

    items: of the program's graph, with layers that become functions; None: its nodes. references: as for `emit`. trail: of a binding that is
    tracked.
    """

    def __init__(
        self,
        program: Program,
        binding: Binding,
        items: Sequence[Item] | None = None,
        references: bool = True,
        trail: Trail | None = None,
    ) -> None:
        self.program = program
        self.binding = binding
        self.items = items
        self.references = references
        self.trail = trail
        self.context = context()
        self.refusals = Refusals()
        self._locations: dict[tuple[tuple[str, int] | None, str], ir.Location] = {}
        self._inside = ""

    def module(self) -> HloModule:
        """The verified module."""
        signature = signature_of(self.program, self.binding)
        with self.context, ir.Location.unknown():
            module = ir.Module.create()
            module.operation.attributes["sym_name"] = ir.StringAttr.get(symbol(self.program.name))
            self.functions = Functions(module.body, references=self.references, trail=self.trail)
            with ir.InsertionPoint(module.body):
                annotate(self._main(), signature)
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
            complete=None if self.references else self._complete,
        )

    def _complete(self, symbols: Collection[str] | None) -> None:
        """Emits the references that are only declared: those, or all. Raises FxhloError where a rule refuses one of their ops."""
        with self.context, ir.Location.unknown():
            self.items = None
            self.functions.complete(symbols, self.inline)
            self.refusals.raise_all()

    def _main(self) -> ir.OpView:
        nodes = [node for node in self.program.placeholders if isinstance(node.meta["val"], torch.Tensor)]
        operands = [self.binding.type_of(node.meta["val"]) for node in nodes]
        results = [output_type(value, self.binding) for value in self.program.outputs]

        def body(values: list[Value]) -> list[Value]:
            outputs: list[Value] = []
            try:
                outputs = self._graph(self.program.module, dict(zip(nodes, values, strict=True)), self.items)
            except NotEmitted:
                assert self.refusals
            self.refusals.raise_all()
            return outputs

        return emit_function("main", "public", operands, results, body)

    def inline(self, module: fx.GraphModule, operands: Sequence[object]) -> list[Value]:
        """Emits the nodes of `module` at the insertion point and returns its outputs. operands: Values and numbers, one per placeholder."""
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        return self._graph(module, dict(zip(placeholders, operands, strict=True)))

    def _graph(
        self, module: fx.GraphModule, environment: Environment, items: Iterable[Item] | None = None
    ) -> list[Value]:
        """Emits the graph and returns its outputs. environment: holds the tensor placeholders; gets the value of every node."""
        for node in items or module.graph.nodes:
            if isinstance(node, Layer):
                self._layer(module, node, environment)
                continue
            if node in environment:
                continue
            if node.op == "output":
                outputs = node.args[0] if isinstance(node.args[0], tuple | list) else (node.args[0],)
                return [self._output(value, environment) for value in outputs]
            environment[node] = self._node(module, node, environment)
        raise AssertionError("a graph without an output node")

    def _node(self, module: fx.GraphModule, node: fx.Node, environment: Environment) -> object:
        if node.op == "get_attr":
            return _attribute(module, node)
        if is_symbolic(node):
            return self._number(node)
        if node.op == "placeholder":
            return node.meta["val"]  # None, or a string: torch.export has used its value
        if node.op == "call_function":
            return self._call(node, environment)
        raise LoweringError(
            f"the graph holds a {node.op} node ({node}), which only traced graphs of torch do not", where=where(node)
        )

    def _layer(self, module: fx.GraphModule, layer: Layer, environment: Environment) -> None:
        """Emits a call of the function that all layers of this kind share; the first one emits the function."""
        first = layer.first
        operands = [value for node in layer.operands if isinstance(value := environment[node], Value)]
        assert len(operands) == len(layer.operands), layer.path

        def body(values: list[Value]) -> list[Value]:
            inside: Environment = dict(zip(first.operands, values, strict=True))
            self._inside = first.path
            for node in (*first.fixed, *first.nodes):
                inside[node] = self._node(module, node, inside)
            self._inside = ""
            return [self._output(node, inside) for node in first.results]

        results = [self.binding.type_of(node.meta["val"]) for node in first.results]
        types = [operand.type for operand in operands]
        function = self.functions.emitted(first, first.kind, types, results, body)
        with self._place(layer.path, source_of(layer.nodes[0])):
            environment.update(zip(layer.results, call(function, operands), strict=True))

    # -- calls -----------------------------------------------------------------------------------------------------

    def _call(self, node: fx.Node, environment: Environment) -> object:
        name = overload_name(node.target)
        if name in SILENT:
            return None
        evaluated: Callable[[fx.Node], Any] = environment.__getitem__
        args: Any = self.binding.given(fx.map_arg(node.args, evaluated))
        kwargs: Any = self.binding.given(fx.map_arg(node.kwargs, evaluated))
        if name == "_operator.getitem":
            return args[0] if args[0] is UNKNOWN else args[0][args[1]]
        if self.refusals and any(leaf is UNKNOWN for leaf in pytree.tree_leaves((args, kwargs))):
            return self._placeholder(node)
        try:
            return self._by_rule(node, name, args, kwargs)
        except NotEmitted:
            return self._placeholder(node)
        except Unlike:
            raise
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

    def _by_rule(self, node: fx.Node, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        rule = find_rule(node.target)
        if rule is None:
            raise LoweringError(f"{name} has no rule", next_step="lower-model check lists all that is missing")
        types = self._result_types(node.meta["val"])
        with self._location(node):
            results = rule(Context(types, name, self.functions, self.inline), *args, **kwargs)
        _verify(node, name, results, types)
        return results

    def _result_types(self, val: object) -> tuple[TensorType | None, ...]:
        vals = val if isinstance(val, tuple | list) else (val,)
        return tuple(self.binding.type_of(entry) if isinstance(entry, torch.Tensor) else None for entry in vals)

    def _number(self, node: fx.Node) -> object:
        try:
            return self.binding.number(node.meta["val"])
        except FxhloError as problem:  # it depends on data
            return self._refuse(node, problem)

    def _output(self, value: object, environment: Environment) -> Value:
        value = environment[value] if isinstance(value, fx.Node) else value
        if value is UNKNOWN:
            raise NotEmitted
        if isinstance(value, Value):
            return value
        number = self.binding.number(value)
        return full((), torch.tensor(number).dtype, number)

    # -- refusals --------------------------------------------------------------------------------------------------

    def _refuse(self, node: fx.Node, problem: FxhloError) -> object:
        self.refusals.add(node, problem)
        if self.items is not None:
            raise RefusedOnce from problem
        return self._placeholder(node)

    def _placeholder(self, node: fx.Node) -> object:
        """Zeros of the stated types for a rejected op's results; UNKNOWN where there is no type."""
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

    # -- locations -------------------------------------------------------------------------------------------------

    def _location(self, node: fx.Node) -> ir.Location:
        """The user's line and the module path; inside of a layer's function the path below the layer, which the call names."""
        path = path_below(node, self._inside) if self._inside else module_path(node)
        return self._place(path, source_of(node))

    def _place(self, path: str, source: tuple[str, int] | None) -> ir.Location:
        key = (source, path)
        if key not in self._locations:
            location = (
                ir.Location.file(source[0], source[1], 0, self.context) if source else ir.Location.unknown(self.context)
            )
            self._locations[key] = ir.Location.name(path, location, self.context) if path else location
        return self._locations[key]


def _verify(node: fx.Node, name: str, results: object, types: Sequence[TensorType | None]) -> None:
    """Raises LoweringError where a rule's results have other types than the graph states: a mistake is reported at its own op."""
    built = results if isinstance(results, tuple | list) else (results,)
    for result, type_ in zip(built, types, strict=False):
        if type_ is not None and (not isinstance(result, Value) or result.type != type_):
            got = f"{list(result.shape)} {result.dtype}" if isinstance(result, Value) else repr(result)
            raise LoweringError(
                f"the rule of {name} built {got} where the graph says {list(type_.shape)} {type_.dtype}",
                where=where(node),
                next_step="correct the rule: see docs/add_an_op.md",
            )


def _attribute(module: fx.GraphModule, node: fx.Node) -> object:
    """Returns a get_attr node's tensor as a constant, or the graph of a region of control flow."""
    value: object = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return constant(value, where(node)) if isinstance(value, torch.Tensor) else value


def constant(tensor: torch.Tensor, at: str | None = None) -> Value:
    """Emits a tensor as a constant. at: the user's line, for the LoweringError of a tensor without values."""
    if isinstance(tensor, FakeTensor):
        raise LoweringError("a constant of the graph has no values (it was captured as a fake tensor)", where=at)
    return array(as_numpy(tensor), tensor.dtype)
