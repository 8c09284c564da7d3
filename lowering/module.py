"""HloModule: what `fxhlo.lower` returns. Its methods are calls of the functions that compile and save a module."""

from __future__ import annotations

from pathlib import Path

from ..passes.hlo.legalize import Legalized
from ..runtime.core.bundle import Bundle
from ..runtime.core.executable import Executable
from ..runtime.core.pjrt import Compiled
from . import bundling, compiling
from .lowered import LoweredModule


class HloModule(LoweredModule):
    """A LoweredModule that compiles and saves itself: `.text .bytecode .signature .compile() .save(directory)`."""

    def legalized(self) -> Legalized:
        """Returns a copy with the composites replaced for the target, and the decision for each. Raises LegalizeError."""
        return compiling.legalized(self)

    def compile(self, like: Executable | None = None) -> Executable:
        """Compiles for the target and places the weights; call the result with the user's inputs.

        like: a program of the same model for other sizes, whose weights are shared instead of placed again.
        Raises CompileError, OutOfMemoryError, UnsupportedError where the target's device is not here.
        """
        return compiling.compiled(self, like)

    def compile_ahead(self) -> Compiled:
        """Compiles ahead of time, without a device: memory, costs, text and bytes of the executable.

        Raises OutOfMemoryError, CompileError; UnsupportedError where only a machine with the device compiles.
        """
        return compiling.compiled_ahead(self)

    def save(self, directory: str | Path) -> Bundle:
        """Writes a bundle with this module as its only entry, and returns it opened."""
        return bundling.save(directory, {self.name: self})
