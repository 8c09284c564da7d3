"""Sizes that remember what they are of: one emission shows how those for other sizes differ from it.

Comes in: a Program, and which of its dimensions vary. Goes out: a binding whose sizes are stand-ins for those, and a Trail of what was
computed of them and decided by them. Guaranteed: where every fact of the Trail holds for other sizes, an emission for those takes the same
turns, and has the same numbers but for those of the Trail, which it says as expressions.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import sympy

from ...passes.program import Program
from ...passes.torch_private import pytree
from .dims import Binding

LEAST = 1000
"""A smaller number does not tell what it is of: a model has its like."""
STAND_INS = ((8009, 9001), (5003, 6007), (3001, 4001), (2003, 2503))
"""For each dimension that varies, the largest first: what stands in for its size, and a second one, by which expressions that are equal at
the first are told apart. Small enough that a large vocabulary's logits can be counted in 32 bits, as they can for real sizes."""


class Unlike(Exception):
    """An emission for other sizes need not look like this one: a number's origin is lost, or what it would decide is unknown."""


class Trail:
    """What an emission computed of its stand-ins (`origins`) and decided by them (`facts`).

    Expressions are Python's, of `n`: the numbers of the `leaves`, which are expressions of the Program's dimensions.
    """

    def __init__(self) -> None:
        self.leaves: list[sympy.Basic] = []
        self.origins: dict[int, Extent] = {}
        self.facts: dict[str, bool] = {}

    def leaf(self, expression: sympy.Basic, value: int, other: int) -> int:
        """The number of an expression of the Program's dimensions; other: at their second stand-ins."""
        self.leaves.append(expression)
        return self.made(value, other, f"n[{len(self.leaves) - 1}]")

    def made(self, value: int, other: int, text: str) -> int:
        """A number that was computed; one that is too small to tell is a fact. Raises Unlike where another expression gives it as well."""
        if abs(value) < LEAST:
            self.decided(f"{text} == {value}", True)
            return value
        known = self.origins.get(value)
        if known is None:
            known = self.origins[value] = Extent.of(self, value, other, text)
        elif known.other != other:
            raise Unlike(f"{text} and {known.text} are both {value}")
        return known

    def known(self, number: int) -> int:
        """The number with its origin, where it has one; torch and MLIR give numbers back without."""
        return number if type(number) is not int else self.origins.get(number, number)

    def decided(self, text: str, outcome: bool) -> bool:
        self.facts[text] = outcome
        return outcome

    @cached_property
    def _code(self) -> tuple[Any, Any]:
        facts = " and ".join(f"({text}) is {outcome}" for text, outcome in self.facts.items()) or "True"
        numbers = ", ".join(f"{value}: {one.text}" for value, one in self.origins.items())
        return tuple(eval(f"lambda n: {body}") for body in (facts, f"{{{numbers}}}"))

    def numbers(self, binding: Binding) -> dict[int, int] | None:
        """What stands in the place of each stand-in's number for the binding's sizes; None where an emission for those takes other turns.
        Call it when the emission is done."""
        leaves = [binding.number(leaf) for leaf in self.leaves]
        hold, numbers = self._code
        found: dict[int, int] | None = numbers(leaves) if hold(leaves) else None
        return found


class Extent(int):
    """An int that writes down in a Trail what is made of it (`text`) and decided by it. other: its value at the second stand-ins."""

    trail: Trail
    other: int
    text: str

    @classmethod
    def of(cls, trail: Trail, value: int, other: int, text: str) -> Extent:
        made = cls(value)
        made.trail, made.other, made.text = trail, other, text
        return made

    __hash__ = int.__hash__  # a class that defines __eq__ has none

    def __bool__(self) -> bool:
        return self.trail.decided(f"({self.text}) != 0", int.__bool__(self))

    def _untold(self, *_: object) -> Any:
        raise Unlike(f"an operation on {self.text} that is not followed")

    __truediv__ = __rtruediv__ = __float__ = __pow__ = __rpow__ = _untold
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = __invert__ = _untold
    __lshift__ = __rlshift__ = __rshift__ = __rrshift__ = __divmod__ = __rdivmod__ = bit_length = _untold


def _plain(number: Any) -> int:
    return int.__add__(number, 0)


def _told(number: Any, trail: Trail) -> tuple[int, int, str]:
    """Value, value at the second stand-ins, and text of an int."""
    number = trail.known(number)
    return (_plain(number), number.other, number.text) if isinstance(number, Extent) else (number, number, str(number))


def _computed(symbol: str, function: Callable[[Any, Any], Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The methods of an operator, and of the same with the operands exchanged."""

    def made(left: Any, right: Any, trail: Trail) -> Any:
        (a, a_other, a_text), (b, b_other, b_text) = _told(left, trail), _told(right, trail)
        return trail.made(function(a, b), function(a_other, b_other), f"(({a_text}) {symbol} ({b_text}))")

    def method(self: Extent, right: object) -> Any:
        if not isinstance(right, int):
            return self._untold()
        return made(self, right, self.trail)

    def exchanged(self: Extent, left: object) -> Any:
        if not isinstance(left, int):
            return self._untold()
        return made(left, self, self.trail)

    return method, exchanged


def _decided(symbol: str, function: Callable[[Any, Any], bool]) -> Callable[[Extent, object], Any]:
    def method(self: Extent, right: object) -> Any:
        if not isinstance(right, int):
            return NotImplemented if not isinstance(right, float) else self._untold()
        (a, _, a_text), (b, _, b_text) = _told(self, self.trail), _told(right, self.trail)
        outcome = function(a, b)
        return outcome if a_text == b_text else self.trail.decided(f"({a_text}) {symbol} ({b_text})", outcome)

    return method


for _name, _symbol in (("add", "+"), ("sub", "-"), ("mul", "*"), ("floordiv", "//"), ("mod", "%")):
    _method, _exchanged = _computed(_symbol, getattr(operator, _name))
    setattr(Extent, f"__{_name}__", _method)
    setattr(Extent, f"__r{_name}__", _exchanged)
for _name, _symbol in (("eq", "=="), ("ne", "!="), ("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">=")):
    setattr(Extent, f"__{_name}__", _decided(_symbol, getattr(operator, _name)))
for _name, _symbol in (("neg", "-"), ("abs", "abs")):
    _function = getattr(operator, _name)
    setattr(
        Extent,
        f"__{_name}__",
        lambda self, symbol=_symbol, function=_function: self.trail.made(
            function(_plain(self)), function(self.other), f"{symbol}({self.text})"
        ),
    )


class Tracked(Binding):
    """A binding of `program` whose dimensions of the names `varying` have stand-ins; the others those of `sizes`, as Binding takes them.

    Ranges and guards of the Program are not checked: those of other sizes are, by their own bindings. Raises Unlike for too many.
    """

    def __init__(
        self, program: Program, sizes: Mapping[str, int], varying: Sequence[Sequence[str]], trail: Trail
    ) -> None:
        """varying: names of dimensions; those that are given together have the same size."""
        if len(varying) > len(STAND_INS):
            raise Unlike(f"{len(varying)} dimensions vary")
        self.trail = trail
        first, second = dict(sizes), dict(sizes)
        for names, (value, other) in zip(varying, STAND_INS, strict=False):
            first |= dict.fromkeys(names, value)
            second |= dict.fromkeys(names, other)
        self.sizes = first
        self._numbers: dict[sympy.Basic, int | float | bool] = {}
        self._symbols = {dim.symbol: sympy.Integer(first[dim.name]) for dim in program.dims}
        self._others = {dim.symbol: sympy.Integer(second[dim.name]) for dim in program.dims}

    def number(self, size: Any) -> Any:
        return self.trail.known(size) if type(size) is int else super().number(size)

    def given(self, arguments: Any) -> Any:
        return pytree.tree_map_only(int, self.trail.known, arguments)

    def _evaluate(self, expression: sympy.Basic) -> int | float | bool:
        value, other = self._at(expression, self._symbols), self._at(expression, self._others)
        if value == other and not self._varies(expression):
            return value
        if type(value) is not int:
            raise Unlike(f"{expression} is {value}")
        return self.trail.leaf(expression, value, int(other))

    def _varies(self, expression: sympy.Basic) -> bool:
        return any(self._symbols.get(symbol) != self._others.get(symbol) for symbol in expression.free_symbols)
