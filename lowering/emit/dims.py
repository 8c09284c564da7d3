"""Binds symbolic dimensions to numbers and evaluates symbolic sizes.

Comes in: a Program's dims and guards, and the user's bindings by name. Goes out: `Binding.number(size)`.
Guaranteed: every dimension is bound within its range and every guard of the capture holds; else GuardError names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy
import torch

from ...passes.program import Dim, Program
from ..errors import GuardError, LoweringError
from ..types import TensorType

SMALL = (0, 1)
"""Sizes for which ops of torch may branch: they broadcast, squeeze, or compute nothing."""


class Binding:
    """A number for each symbol of a Program.

    bindings: sizes by dimension name or alias; a dimension that is not named takes the example's size. Raises GuardError for an
    unknown name, a size out of range, and a guard that does not hold.
    """

    def __init__(self, program: Program, bindings: Mapping[str, int] | None = None) -> None:
        self.sizes = _resolve(program, dict(bindings or {}))
        self._numbers: dict[sympy.Basic, int | float | bool] = {}
        self._symbols = {dim.symbol: sympy.Integer(self.sizes[dim.name]) for dim in program.dims}
        self._check_guards(program)

    @staticmethod
    def names(program: Program, bindings: Mapping[str, int]) -> set[str]:
        """Names of the dimensions in `bindings`, whose keys are names or aliases. Raises GuardError for an unknown one."""
        return set(_named(program, bindings))

    def number(self, size: Any) -> Any:
        """The value of a SymInt, SymFloat, SymBool or sympy expression; a plain number is returned unchanged.

        Raises LoweringError for a size that depends on data.
        """
        if isinstance(size, int | float | bool):
            return size
        expression = size if isinstance(size, sympy.Basic) else size.node.expr
        if expression not in self._numbers:
            self._numbers[expression] = self._evaluate(expression)
        return self._numbers[expression]

    def given(self, arguments: Any) -> Any:
        """Arguments of an op's rule, as the graph has them."""
        return arguments

    def type_of(self, tensor: torch.Tensor) -> TensorType:
        """The static type of a fake tensor."""
        return TensorType(tuple(self.number(size) for size in tensor.shape), tensor.dtype)

    def _evaluate(self, expression: sympy.Basic) -> int | float | bool:
        return self._at(expression, self._symbols)

    @staticmethod
    def _at(expression: sympy.Basic, symbols: Mapping[sympy.Symbol, sympy.Integer]) -> int | float | bool:
        result = expression.xreplace(symbols)
        if result.free_symbols:
            names = ", ".join(sorted(str(symbol) for symbol in result.free_symbols))
            raise LoweringError(
                f"the size {expression} depends on data ({names}): a compiled module's shapes are fixed",
                next_step="replace the op whose result shape depends on values (nonzero, boolean masks, .item()) by a masked form",
            )
        if result in (sympy.true, sympy.false):
            return bool(result)
        return int(result) if result.is_integer or isinstance(result, sympy.Integer) else float(result)

    def _check_guards(self, program: Program) -> None:
        for guard in program.guards:
            held = guard.expression.xreplace(self._symbols)
            if held == sympy.false:
                names = list(
                    dict.fromkeys(dim.name for dim in program.dims if dim.symbol in guard.expression.free_symbols)
                )
                if guard.internal and program.source is not None and any(self.sizes[name] in SMALL for name in names):
                    continue  # small_sizes.py checks each op at that size
                given = ", ".join(f"{name}={self.sizes[name]}" for name in names)
                raise GuardError(
                    f"{given} breaks the assumption {guard.expression} that the capture made",
                    where=guard.where,
                    next_step="bind another size, or capture with a range that excludes it",
                )


def _named(program: Program, given: Mapping[str, int]) -> dict[str, int]:
    """Sizes by dimension name, from sizes by name or alias. Raises GuardError for an unknown name or two sizes of one dimension."""
    names = {alias: dim for dim in program.dims for alias in (dim.name, str(dim.symbol), *dim.aliases)}
    sizes: dict[str, int] = {}
    for name, size in given.items():
        if name not in names:
            known = ", ".join(dict.fromkeys(dim.name for dim in program.dims)) or "none: every size is static"
            raise GuardError(
                f"there is no dimension {name!r}; dimensions: {known}", next_step="name one of these in bindings"
            )
        dim = names[name]
        if not isinstance(size, int) or isinstance(size, bool):
            raise GuardError(f"the size of {name} is {size!r}, which is no integer", next_step="bind it to an integer")
        if sizes.setdefault(dim.name, size) != size:
            raise GuardError(
                f"dimension {dim.name} is bound to both {sizes[dim.name]} and {size}", next_step="bind it once"
            )
    return sizes


def _resolve(program: Program, given: Mapping[str, int]) -> dict[str, int]:
    sizes = _named(program, given)
    for dim in program.dims:
        if dim.name not in sizes:
            if dim.hint is None:
                raise GuardError(f"dimension {dim.name} is not bound", next_step=f"pass bindings={{{dim.name!r}: ...}}")
            sizes[dim.name] = dim.hint
        _check_range(program, dim, sizes[dim.name])
    return sizes


def _check_range(program: Program, dim: Dim, size: int) -> None:
    if size < dim.minimum or (dim.maximum is not None and size > dim.maximum):
        upper = "" if dim.maximum is None else f" to {dim.maximum}"
        raise GuardError(
            f"dimension {dim.name} is bound to {size}, but was captured for {dim.minimum}{upper or ' and more'}",
            where=_narrowed_at(program, dim, size),
            next_step="bind a size in that range, or capture with a wider one (dynamic_shapes)",
        )


def _narrowed_at(program: Program, dim: Dim, size: int) -> str | None:
    """The line whose assumption excludes this size; None where the user's own range excludes it."""
    broken = [
        guard.where
        for guard in program.guards
        if guard.where and guard.expression.xreplace({dim.symbol: sympy.Integer(size)}) == sympy.false
    ]
    return broken[0] if broken else None
