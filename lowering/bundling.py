"""From HloModules to a bundle: the compiler's end of the seam between compiler and runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import TYPE_CHECKING

from ..passes import mlir
from ..passes.hlo.legalize import Legalized, legalize
from ..runtime.core import pjrt
from ..runtime.core.bundle import Bundle

if TYPE_CHECKING:
    from ..runtime.core.writer import BundleWriter
    from .module import HloModule


def save(directory: str | Path, modules: Mapping[str, HloModule]) -> Bundle:
    """Writes a bundle with an entry per module, their legalized forms, and the weights where they have values."""
    with Bundle.create(directory) as writer:
        for name, module in modules.items():
            add(writer, name, module)
        weights = {name: array for module in modules.values() for name, array in module.arrays().items()}
        if weights:
            writer.add_weights(weights)
    return Bundle.open(directory)


def save_compiled(
    directory: str | Path,
    modules: Iterable[tuple[str, HloModule]],
    pool: Executor,
    done: Callable[[str, Legalized], None],
) -> None:
    """Writes a bundle without weights whose entries are compiled for their target.

    modules: may be a generator: one module is emitted while others compile in `pool`. done: called after each.
    """
    compiling: list[tuple[str, HloModule, Legalized, Future]] = []
    with Bundle.create(directory) as writer:
        for name, module in modules:
            legalized = add(writer, name, module)
            compiling.append(
                (
                    name,
                    module,
                    legalized,
                    pool.submit(
                        pjrt.compile,
                        legalized.bytecode,
                        module.target,
                        custom_calls=legalized.custom_calls,
                    ),
                )
            )
        for name, module, legalized, future in compiling:
            loaded = future.result()
            writer.add_target(
                name,
                module.target,
                module=legalized.bytecode,
                executable=loaded,
                custom_calls=legalized.custom_calls,
            )
            done(name, legalized)


def add(writer: BundleWriter, name: str, module: HloModule) -> Legalized:
    """An entry with its portable module and, where it differs, the one for the module's target."""
    writer.add_entry(name, module.bytecode, module.signature, bindings=module.bindings)
    legalized = legalize(mlir.bytecode(module.module), module.target)
    if legalized.decisions:
        writer.add_target(name, module.target, module=legalized.bytecode, custom_calls=legalized.custom_calls)
    return legalized
