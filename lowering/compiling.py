"""Compiles a lowered module: legalizes it for its target, runs the target's compiler, places the weights."""

from __future__ import annotations

from collections.abc import Callable

from ..passes import mlir
from ..passes.hlo.legalize import Legalized, OnlyDeclared, legalize, legalize_to_run
from ..runtime.core import pjrt
from ..runtime.core.executable import Executable
from .lowered import LoweredModule


def legalized(module: LoweredModule) -> Legalized:
    """Returns a copy with the composites replaced for the target; the lowered module stays portable. Raises LegalizeError."""
    return _legalized(legalize, module)


def legalized_to_run(module: LoweredModule) -> Legalized:
    """Like `legalized`, for a module that is compiled next: builds the native kernels that it calls, or lets it call none."""
    return _legalized(legalize_to_run, module)


def _legalized(way: Callable[[bytes, str], Legalized], module: LoweredModule) -> Legalized:
    """The module after `way`; with the references that it only declares where the target has no kernel in place of one."""
    while True:
        try:
            return way(mlir.bytecode(module.module), module.target)
        except OnlyDeclared as missing:
            symbols = missing.symbols
        assert module.complete is not None, symbols
        module.complete(symbols)


def compiled(module: LoweredModule, like: Executable | None = None) -> Executable:
    """Compiles the module for its target and binds the weights that have values.

    like: a program of the same model for other sizes, whose weights are shared; buffers that calls update are placed anew.
    """
    legal = legalized_to_run(module)
    loaded = pjrt.compile(legal.bytecode, module.target, custom_calls=legal.custom_calls, mesh=module.signature.mesh)
    executable = Executable(loaded, module.signature, name=module.name)
    arrays = module.arrays()
    if not arrays:
        return executable
    fixed = {argument.name for argument in module.signature.weights if argument.alias is None}
    placed = {name: buffer for name, buffer in like.bound.items() if name in fixed} if like is not None else {}
    return executable.bind({**arrays, **placed})


def compiled_ahead(module: LoweredModule) -> pjrt.Compiled:
    """Compiles the module ahead of time, without a device where the target's compiler can."""
    legal = legalized(module)
    return pjrt.build(legal.bytecode, module.target, custom_calls=legal.custom_calls, mesh=module.signature.mesh)
