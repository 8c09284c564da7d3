"""Writes lowered modules as a bundle, the interface between compiler and runtime."""

from __future__ import annotations

from collections import deque
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
from ..runtime.core.signature import Signature
from ..runtime.core.writer import BundleWriter
from .compiling import legalized
from .lowered import LoweredModule


class Entry(NamedTuple):
    """What a bundle has of a module before it is compiled. target: that it is legalized for. portable: bytecode for any target."""

    signature: Signature
    bindings: Mapping[str, int]
    target: str
    legal: Legalized
    portable: bytes

    @classmethod
    def of(cls, module: LoweredModule, legalized: Callable[[LoweredModule], Legalized]) -> Entry:
        """A module without references (`emit`) is portable from one jaxlib to the next alone: its entry is what its target runs."""
        legal = legalized(module)
        portable = module.bytecode if module.complete is None else legal.bytecode
        return cls(module.signature, module.bindings, module.target, legal, portable)


def save(directory: str | Path, modules: Mapping[str, LoweredModule]) -> Bundle:
    """Writes a bundle with an entry per module, their legalized forms, and the weights where they have values."""
    with Bundle.create(directory) as writer:
        for name, module in modules.items():
            add(writer, name, Entry.of(module, legalized))
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


AHEAD = 4
"""Entries that are compiled, or wait for it, at most: what is emitted and compiled is not held for longer than it takes to write it."""


def save_compiled(
    directory: str | Path,
    entries: Iterable[tuple[str, Entry]],
    pool: Executor,
    done: Callable[[Finished], None],
    notes: Mapping[str, object] | None = None,
    library: Callable[[], bytes] | None = None,
) -> None:
    """Writes a bundle without weights whose entries are compiled for their target, ahead of time where that is a TPU that is not here.

    entries: (name, entry); a generator emits one while others compile in `pool`, AHEAD of them at most. done: called after each entry, in their
    order. notes: the manifest's.
    library: reads the native kernels' library, for a bundle that has it where an entry calls them.
    Raises OutOfMemoryError, after all were tried, where an entry does not fit; then no bundle is left.
    """
    compiling: deque[tuple[Entry, Future[Finished]]] = deque()
    too_large: OutOfMemoryError | None = None
    calls: set[str] = set()
    with Bundle.create(directory, notes=notes) as writer:

        def write(left: int) -> None:
            """Writes the first entries, until so many are left that are being compiled."""
            nonlocal too_large
            while len(compiling) > left or (compiling and compiling[0][1].done()):
                entry, future = compiling.popleft()
                finished = future.result()
                too_large = too_large or finished.too_large
                if finished.compiled is not None:
                    writer.add_target(
                        finished.name,
                        entry.target,
                        module=entry.legal.bytecode,
                        executable=finished.compiled,
                        custom_calls=entry.legal.custom_calls,
                    )
                done(finished)

        for name, entry in entries:
            add(writer, name, entry)
            calls |= set(entry.legal.custom_calls)
            compiling.append((entry, pool.submit(_compile, name, entry)))
            write(AHEAD)
        write(0)
        if too_large is not None:
            raise too_large
        if library is not None and calls & set(native.TARGETS):
            writer.add_library(library())


def _compile(name: str, entry: Entry) -> Finished:
    began = perf_counter()
    compiled, too_large = None, None
    try:
        mesh = entry.signature.mesh
        compiled = pjrt.build(entry.legal.bytecode, entry.target, custom_calls=entry.legal.custom_calls, mesh=mesh)
    except OutOfMemoryError as problem:
        too_large = problem
    return Finished(name, entry.legal, compiled, perf_counter() - began, too_large)


def add(writer: BundleWriter, name: str, entry: Entry) -> None:
    """Adds an entry with its portable module and, where it differs, the one for its target."""
    writer.add_entry(name, entry.portable, entry.signature, bindings=entry.bindings)
    if entry.legal.decisions:
        writer.add_target(name, entry.target, module=entry.legal.bytecode, custom_calls=entry.legal.custom_calls)
