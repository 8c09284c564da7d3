"""DynamicModule: a lowered module with unbound dimensions, of one capture; a StableHLO module is emitted per shape.

fxhlo emits static shapes, since kernels, layouts and rules are chosen by size. So a module with dynamic dimensions stays a Program,
on which all passes have run, and is emitted when its sizes are known: by `bind`, or by the arguments of a call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import sympy
import torch

from ..passes.default import default_passes
from ..passes.pipeline import run
from ..passes.program import Dim, Program
from ..runtime.core.errors import ShapeError
from ..runtime.core.targets import Target
from .emit.coverage import check
from .emit.dims import Binding
from .emit.emit import emit
from .emit.small_sizes import check_small_sizes
from .errors import GuardError
from .module import HloModule

if TYPE_CHECKING:
    from ..runtime.core.bundle import Bundle
    from ..runtime.core.executable import Executable
    from ..runtime.core.signature import Signature


@dataclass(frozen=True)
class DynamicModule:
    """The result of `fxhlo.lower` where dimensions are dynamic and `bindings` does not name them all.

    program: as captured. given: the bound sizes by name. target: what modules will be compiled for.
    """

    program: Program
    target: Target
    given: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def dims(self) -> tuple[Dim, ...]:
        """The unbound dimensions: names, ranges and the example's sizes (`hint`)."""
        bound = Binding.names(self.program, self.given)
        return tuple({dim.name: dim for dim in self.program.dims if dim.name not in bound}.values())

    def check(self) -> None:
        """Raises ContractError where an op has no rule, and GuardError where a bound size is out of range."""
        check(self._finished, {**self._example, **self.given})

    def bind(self, bindings: Mapping[str, int] | None = None, /, **sizes: int) -> HloModule:
        """Emits the module for these sizes, by dimension name. Raises GuardError for a size that is missing, out of range, or excluded by the model."""
        chosen = {**self.given, **(bindings or {}), **sizes}
        bound = Binding.names(self.program, chosen)
        if left := [dim.name for dim in self.dims if dim.name not in bound]:
            raise GuardError(f"{_some(left)} not bound", next_step=f"pass bind({left[0]}=...)")
        return self._emit(chosen)

    def bind_example(self) -> HloModule:
        """Emits the module for the example's sizes; 2, or the minimum, where a program has none."""
        return self._emit({**self._example, **self.given})

    def compile(self) -> DynamicExecutable:
        """Returns an executable that compiles a program at the first call with each shape; weights are placed once."""
        return DynamicExecutable(self)

    def save(self, directory: str | Path, bindings: Sequence[Mapping[str, int]] = ()) -> Bundle:
        """Writes a bundle with an entry for each of `bindings`, named by its sizes, such as "main.batch=8"."""
        from .bundling import save

        if not bindings:
            self._unbound("a bundle holds programs", "hlo.save(directory, bindings=[{%s}, ...])")
        modules = [self.bind(sizes) for sizes in bindings]
        named = {f"{one.name}.{'.'.join(f'{k}={v}' for k, v in one.bindings.items())}": one for one in modules}
        return save(directory, {name: replace(one, name=name) for name, one in named.items()})

    @property
    def text(self) -> str:
        self._unbound("StableHLO's text has numbers", "hlo.bind(%s).text")

    @property
    def bytecode(self) -> bytes:
        self._unbound("StableHLO's bytecode has numbers", "hlo.bind(%s).bytecode")

    @property
    def signature(self) -> Signature:
        self._unbound("a signature has numbers", "hlo.bind(%s).signature")

    def _unbound(self, what: str, instead: str) -> NoReturn:
        names = [dim.name for dim in self.dims]
        sizes = ", ".join(f"{name}=..." if name.isidentifier() else f"{{{name!r}: ...}}" for name in names)
        raise GuardError(
            f"{what}, and {_some(names)} not bound",
            next_step=f"{instead % sizes}; or hlo.compile(), which compiles a program for each shape that it is called with",
        )

    def _emit(self, sizes: Mapping[str, int]) -> HloModule:
        check_small_sizes(self.program, Binding(self.program, sizes))
        check(self._finished, sizes)
        return replace(emit(self._finished, sizes), target=str(self.target))

    @property
    def _example(self) -> dict[str, int]:
        return {dim.name: max(dim.minimum, 2) if dim.hint is None else dim.hint for dim in self.dims}

    @cached_property
    def _finished(self) -> Program:
        return run(default_passes(), self.program)

    def __repr__(self) -> str:
        return f"<DynamicModule {self.program.name}: {', '.join(map(_dim, self.dims))}>"


class DynamicExecutable:
    """An executable for arrays of any sizes in the dimensions' ranges; emits and compiles a program at the first call with each shape."""

    def __init__(self, module: DynamicModule) -> None:
        self.module = module
        self._by_sizes: dict[tuple[tuple[str, int], ...], Executable] = {}
        self._last: Executable | None = None
        nodes = zip(module.program.placeholders, module.program.arguments, strict=True)
        self._inputs = [
            (argument.name, node.meta["val"].shape)
            for node, argument in nodes
            if argument.kind == "input" and isinstance(node.meta.get("val"), torch.Tensor)
        ]
        placed = {symbol for _, shape in self._inputs for size in shape for symbol in _symbols(size)}
        if hidden := [dim.name for dim in module.dims if dim.symbol not in placed]:
            raise GuardError(
                f"{_some(hidden)} not bound, and no tensor has it as a size: the arguments of a call cannot say it",
                next_step=f"pass bindings={{{hidden[0]!r}: ...}}",
            )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        executable = self.at(self.sizes(*args, **kwargs))
        if self._last is not None and self._last is not executable:
            executable.continue_from(self._last)
        self._last = executable
        return executable(*args, **kwargs)

    def sizes(self, *args: Any, **kwargs: Any) -> dict[str, int]:
        """Solves for the dimensions' sizes, by name, from the shapes of a call's arguments. Raises ShapeError where they contradict."""
        given = dict(zip((name for name, _ in self._inputs), args, strict=False)) | kwargs
        for name, shape in self._inputs:
            if name in given and len(np.shape(given[name])) != len(shape):
                raise ShapeError(
                    f"{name} has {len(np.shape(given[name]))} dimensions, and was captured with {len(shape)}",
                    next_step="pass an array with as many dimensions as the example has",
                )
        equations = [
            (name, axis, size, length)
            for name, shape in self._inputs
            if name in given
            for axis, (size, length) in enumerate(zip(shape, np.shape(given[name]), strict=True))
            if isinstance(size, torch.SymInt)
        ]
        known: dict[sympy.Symbol, sympy.Integer] = {}
        for name, axis, size, length in equations:
            expression = sympy.sympify(size.node.expr.xreplace(known))
            if len(expression.free_symbols) == 1:
                (symbol,) = expression.free_symbols
                known[symbol] = self._solved(expression, symbol, length, f"{name} has {length} in dimension {axis}")
            elif not expression.free_symbols and int(expression) != length:
                raise ShapeError(
                    f"{name} has {length} in dimension {axis}, where the other arguments ask for {int(expression)}",
                    next_step="pass arrays whose shapes belong together",
                )
        return {dim.name: int(known[dim.symbol]) for dim in self.module.program.dims if dim.symbol in known}

    def _solved(self, expression: sympy.Basic, symbol: sympy.Symbol, length: int, what: str) -> sympy.Integer:
        """The size for which the expression is `length`. Raises ShapeError where there is none."""
        free = sympy.Symbol("size", integer=True)  # torch's own symbols are positive, and a size may be 0
        found = sympy.solve(sympy.Eq(expression.xreplace({symbol: free}), length), free)
        solved = [one for one in found if one.is_Integer and one >= 0]
        if not solved:
            name = next((dim.name for dim in self.module.program.dims if dim.symbol == symbol), str(symbol))
            shown = expression.xreplace({symbol: sympy.Symbol(name)})
            raise ShapeError(
                f"{what}, which was captured as {shown}: that is {length} for no size of {name}",
                next_step="pass an array of a shape that the capture allows",
            )
        return solved[0]

    def at(self, sizes: Mapping[str, int]) -> Executable:
        """Returns the compiled program for these sizes, with the weights bound. Raises GuardError, CompileError."""
        key = tuple(sorted(sizes.items()))
        if key not in self._by_sizes:
            self._by_sizes[key] = self.module.bind(sizes).compile(like=next(iter(self._by_sizes.values()), None))
        return self._by_sizes[key]

    def __repr__(self) -> str:
        return f"<DynamicExecutable of {self.module!r}; {len(self._by_sizes)} shapes compiled>"


def _symbols(size: object) -> set[sympy.Symbol]:
    return set(size.node.expr.free_symbols) if isinstance(size, torch.SymInt) else set()


def _dim(dim: Dim) -> str:
    return f"{dim.name} {dim.minimum} to {'any' if dim.maximum is None else dim.maximum}"


def _some(names: Sequence[str]) -> str:
    return f"the size of {names[0]} is" if len(names) == 1 else f"the sizes of {', '.join(names)} are"
