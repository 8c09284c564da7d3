"""Writes lowered modules as a bundle, the interface between compiler and runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import NamedTuple

from ..passes.hlo.legalize import Legalized
from ..runtime.core import pjrt
from ..runtime.core.bundle import Bundle
from ..runtime.core.pjrt import Loaded
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


class _Compiling(NamedTuple):
    """An entry whose executable is still being compiled."""

    name: str
    target: str
    legalized: Legalized
    loaded: Future[Loaded]


def save_compiled(
    directory: str | Path,
    modules: Iterable[tuple[str, LoweredModule]],
    pool: Executor,
    done: Callable[[str, Legalized], None],
) -> None:
    """Writes a bundle without weights whose entries are compiled for their target.

    modules: (entry name, module); a generator emits one while others compile in `pool`. done: called after each entry.
    """
    compiling: list[_Compiling] = []
    with Bundle.create(directory) as writer:
        for name, module in modules:
            legal = add(writer, name, module, legalized_to_run)
            loaded = pool.submit(
                pjrt.compile, legal.bytecode, module.target, custom_calls=legal.custom_calls, mesh=module.signature.mesh
            )
            compiling.append(_Compiling(name, module.target, legal, loaded))
        for entry in compiling:
            writer.add_target(
                entry.name,
                entry.target,
                module=entry.legalized.bytecode,
                executable=entry.loaded.result(),
                custom_calls=entry.legalized.custom_calls,
            )
            done(entry.name, entry.legalized)


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
