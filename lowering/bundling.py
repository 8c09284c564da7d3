"""Writes lowered modules as a bundle, the interface between compiler and runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from ..passes.hlo.legalize import Legalized
from ..runtime.core import native, pjrt
from ..runtime.core.bundle import Bundle
from ..runtime.core.errors import OutOfMemoryError
from ..runtime.core.pjrt import Compiled
from ..runtime.core.writer import BundleWriter
from .compiling import legalized, legalized_to_run
from .lowered import LoweredModule


def save(directory: str | Path, modules: Mapping[str, LoweredModule]) -> Bundle:
    """Writes a bundle with an entry per module, their legalized forms, and the weights where they have values."""
    with Bundle.create(directory) as writer:
        for name, module in modules.items():
            add(writer, name, module)
        weights = {name: array for module in modules.values() for name, array in module.arrays().items()}
        if weights:
            writer.add_weights(weights)
    return Bundle.open(directory)


@dataclass(frozen=True)
class Finished:
    """An entry that was compiled. compiled: None where the device has too little memory for it (`too_large`). seconds: of the compiler."""

    name: str
    legalized: Legalized
    compiled: Compiled | None
    seconds: float
    too_large: OutOfMemoryError | None = None


class _Compiling(NamedTuple):
    """An entry whose executable is still being compiled."""

    name: str
    target: str
    legalized: Legalized
    finished: Future[Finished]


def save_compiled(
    directory: str | Path,
    modules: Iterable[tuple[str, LoweredModule]],
    pool: Executor,
    done: Callable[[Finished], None],
    notes: Mapping[str, object] | None = None,
    library: Callable[[], bytes] | None = None,
) -> None:
    """Writes a bundle without weights whose entries are compiled for their target, ahead of time where that is a TPU that is not here.

    modules: (entry name, module); a generator emits one while others compile in `pool`. done: called after each entry. notes: the manifest's.
    library: reads the native kernels' library, for a bundle that has it where an entry calls them.
    Raises OutOfMemoryError, after all were tried, where an entry does not fit; then no bundle is left.
    """
    compiling: list[_Compiling] = []
    with Bundle.create(directory, notes=notes) as writer:
        for name, module in modules:
            legal = add(writer, name, module, legalized_to_run)
            compiling.append(_Compiling(name, module.target, legal, pool.submit(_compile, name, legal, module)))
        too_large = None
        for entry in compiling:
            finished = entry.finished.result()
            too_large = too_large or finished.too_large
            if finished.compiled is not None:
                writer.add_target(
                    entry.name,
                    entry.target,
                    module=entry.legalized.bytecode,
                    executable=finished.compiled,
                    custom_calls=entry.legalized.custom_calls,
                )
            done(finished)
        if too_large is not None:
            raise too_large
        if library is not None and any(set(entry.legalized.custom_calls) & set(native.TARGETS) for entry in compiling):
            writer.add_library(library())


def _compile(name: str, legalized: Legalized, module: LoweredModule) -> Finished:
    began = perf_counter()
    compiled, too_large = None, None
    try:
        mesh = module.signature.mesh
        compiled = pjrt.build(legalized.bytecode, module.target, custom_calls=legalized.custom_calls, mesh=mesh)
    except OutOfMemoryError as problem:
        too_large = problem
    return Finished(name, legalized, compiled, perf_counter() - began, too_large)


def add(
    writer: BundleWriter,
    name: str,
    module: LoweredModule,
    legalized: Callable[[LoweredModule], Legalized] = legalized,
) -> Legalized:
    """Adds an entry with its portable module and, where it differs, the one for the module's target.

    A module without references (`emit`) is portable from one jaxlib to the next alone: its entry is what its target runs.
    """
    legal = legalized(module)
    portable = module.bytecode if module.complete is None else legal.bytecode
    writer.add_entry(name, portable, module.signature, bindings=module.bindings)
    if legal.decisions:
        writer.add_target(name, module.target, module=legal.bytecode, custom_calls=legal.custom_calls)
    return legal
