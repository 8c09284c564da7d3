"""The private functions of the module under construction: composites' decompositions and functions that jax lowers.

Comes in: a traced graph over tensors, or a module's text. Goes out: the function's symbol and result types.
Guaranteed: one function per key, so that calls with the same types and attributes share it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import fx

from ...passes.mlir import adopt, func, ir
from ..types import TensorType, Value, mlir_type
from .extents import Trail, Unlike

Body = Callable[[list[Value]], list[Value]]
"""Emits a function's body at the insertion point, from the function's arguments, and returns its results."""

Trace = Callable[[], fx.GraphModule]
Inline = Callable[[fx.GraphModule, Sequence[object]], list[Value]]


class Function(NamedTuple):
    """A function of the module. symbol: its name, without the @."""

    symbol: str
    results: tuple[TensorType, ...]


class Functions:
    """block: of the module; the functions are added to it. references: whether composites' decompositions get their bodies at once. trail: of an
    emission whose sizes are tracked."""

    def __init__(self, block: ir.Block, *, references: bool = True, trail: Trail | None = None) -> None:
        self._block = block
        self._references = references
        self._trail = trail
        self._by_key: dict[Hashable, Function] = {}
        self._declared: dict[str, tuple[Any, Sequence[TensorType], Sequence[TensorType], Trace]] = {}

    def emitted(
        self, key: Hashable, name: str, operands: Sequence[TensorType], results: Sequence[TensorType], body: Body
    ) -> Function:
        """Returns the function of `key`, emitted at first use with this body. name: the prefix of its symbol."""
        if key in self._by_key:
            return self._by_key[key]
        function = self._added(key, name, results)
        with ir.InsertionPoint(self._block), ir.Location.name(function.symbol):
            emit_function(function.symbol, "private", operands, results, body)
        return function

    def reference(
        self,
        key: Hashable,
        name: str,
        operands: Sequence[TensorType],
        results: Sequence[TensorType],
        trace: Trace,
        inline: Inline,
        replaced: bool,
        uniform: bool,
    ) -> Function:
        """The function of a composite's decomposition: what `trace()` returns. Without `references` it is only declared until `complete`,
        if targets may have it `replaced`. uniform: whether it has the same ops for all sizes.

        To trace the references and to emit them takes most of the time of a step's emission, and a target that has a kernel drops them.
        """
        if self._references or not replaced or key in self._by_key:
            if self._trail is not None and not uniform and key not in self._by_key:
                raise Unlike(f"the reference of {name} may have other ops for other sizes")
            return self.emitted(key, name, operands, results, lambda values: inline(trace(), values))
        function = self._added(key, name, results)
        with ir.InsertionPoint(self._block), ir.Location.name(function.symbol):
            declared = _function(function.symbol, "private", operands, results)
        self._declared[function.symbol] = declared, operands, results, trace
        return function

    def complete(self, symbols: Collection[str] | None, inline: Inline) -> None:
        """Emits the bodies of functions that are only declared: of those symbols, or of all and what they call."""
        while wanted := [symbol for symbol in self._declared if symbols is None or symbol in symbols]:
            declared, operands, results, trace = self._declared.pop(wanted[0])
            with ir.InsertionPoint(declared), ir.Location.name(wanted[0]):
                graph = trace()
                emit_function(wanted[0], "private", operands, results, partial(inline, graph))
            declared.erase()

    def adopted(self, key: Hashable, name: str, lower: Callable[[], tuple[str, Sequence[TensorType]]]) -> Function:
        """Returns the function of `key`, at first use the `main` of the module that `lower()` returns: its text and result types."""
        if key not in self._by_key:
            if self._trail is not None:
                raise Unlike(f"{name} may be lowered to other ops for other sizes")
            source, results = lower()
            self._by_key[key] = Function(adopt(source, self._block, self._symbol(name)), tuple(results))
        return self._by_key[key]

    def _added(self, key: Hashable, name: str, results: Sequence[TensorType]) -> Function:
        if self._trail is not None and any(
            one == key for one in self._by_key
        ):  # compares sizes, which a look-up does not
            raise AssertionError(key)
        function = self._by_key[key] = Function(self._symbol(name), tuple(results))
        return function

    def _symbol(self, name: str) -> str:
        return f"{symbol(name)}_{len(self._by_key)}"


def emit_function(
    name: str,
    visibility: str,
    operands: Sequence[TensorType],
    results: Sequence[TensorType],
    body: Body,
) -> ir.OpView:
    """Emits a function at the insertion point. visibility: "public" or "private"."""
    function = _function(name, visibility, operands, results)
    block = function.add_entry_block()
    values = [Value(argument, *type_) for argument, type_ in zip(block.arguments, operands, strict=True)]
    with ir.InsertionPoint(block):
        func.ReturnOp([result.ir for result in body(values)])
    made: ir.OpView = function
    return made


def _function(name: str, visibility: str, operands: Sequence[TensorType], results: Sequence[TensorType]) -> Any:
    """A function without a body at the insertion point."""
    function = func.FuncOp(name, ([mlir_type(*type_) for type_ in operands], [mlir_type(*type_) for type_ in results]))
    function.attributes["sym_visibility"] = ir.StringAttr.get(visibility)
    return function


def call(function: Function, operands: Sequence[Value]) -> list[Value]:
    """Emits func.call at the insertion point and returns its results."""
    op = func.CallOp(
        [mlir_type(*type_) for type_ in function.results],
        ir.FlatSymbolRefAttr.get(function.symbol),
        [operand.ir for operand in operands],
    )
    return [Value(result, *type_) for result, type_ in zip(op.results, function.results, strict=True)]


def symbol(name: str) -> str:
    """`name` with an underscore for each character that an MLIR symbol cannot have unquoted."""
    return "".join(char if char.isalnum() or char == "_" else "_" for char in name)
