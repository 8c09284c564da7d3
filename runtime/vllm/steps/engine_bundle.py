"""EngineBundle: all programs of an engine in a folder that `lower-model engine -o` wrote, and the check that it fits.

Comes in: a folder, and the identity of the engine that starts. Goes out: its Executables, stored ones alone. Guaranteed:
nothing is traced or compiled, nothing is written; what does not fit is one error that names each difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ...core import native
from ...core.bundle import Bundle
from ...core.errors import BundleError, UnsupportedError
from ...core.executable import Executable
from ...core.manifest import FILE
from ...core.targets import Target
from .identity import Json, differences
from .kinds import Bucket

NOTE = "engine"
"""The manifest's note with the identity."""
READING = 2
"""Threads that read programs: XLA links their code without Python."""
MAKE = "lower-model engine MODEL --target TARGET [vllm's options] -o DIR"


class EngineBundle:
    """An opened bundle of an engine. identity: of the engine that it was made for."""

    def __init__(self, bundle: Bundle, identity: Mapping[str, Any]) -> None:
        self.bundle = bundle
        self.identity = identity

    @classmethod
    def open(cls, path: str | Path) -> EngineBundle:
        """Reads the manifest, and every file's digest. Raises BundleError for damage, and for a bundle of something else."""
        try:
            bundle = Bundle.open(path)
        except BundleError as problem:
            if (Path(path) / FILE).exists():
                raise
            raise BundleError(problem.message, where=path, next_step=f"make one: {MAKE}") from None
        identity = bundle.manifest.notes.get(NOTE)
        if not isinstance(identity, dict) or "target" not in identity:
            raise BundleError("the bundle holds no engine", where=bundle.path, next_step=f"make one: {MAKE}")
        bundle.verify()
        return cls(bundle, identity)

    @property
    def target(self) -> Target:
        return Target.parse(str(self.identity["target"]))

    @property
    def num_blocks(self) -> int:
        """Blocks of each KV cache, for which the programs were made."""
        return int(self.identity["num_blocks"])

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """The programs, in the order in which they are selected."""
        return tuple(Bucket.parse(text) for text in self.identity["buckets"])

    def check_early(self, here: Json) -> None:
        """`check` of what is known before the model is built. Where the bundle has its native kernels, and this process may have some, they are
        loaded from it, and no compiler is asked for."""
        carried = self.bundle.libraries
        if carried and native.switched_off() is None:
            here = {**here, "native": self.identity.get("native")}
        self.check(here, whole=False)
        if carried and native.switched_off() is None:
            self._load_kernels(carried[0])

    def _load_kernels(self, library: Path) -> None:
        try:
            native.take(library, str(self.identity.get("native")))
        except UnsupportedError as problem:
            raise BundleError(problem.message, where=library, next_step=problem.next_step) from problem

    def check(self, here: Json, *, whole: bool = True) -> None:
        """Raises BundleError with every difference to the engine that starts. whole: else only what `here` has is compared."""
        found = differences(self.identity, here, partly=not whole)
        if found:
            raise BundleError(
                f"the bundle does not fit this engine: {'; '.join(found)}",
                where=self.bundle.path,
                next_step=f"start with what it was made for, or make another: {MAKE}",
            )

    def executables(self, names: Sequence[str]) -> list[Executable]:
        """Programs, or stages of some, by name. Raises BundleError where one is not stored for this device, or does not load on it."""
        return executables(self.bundle, names, self.target, stored=True)


def executables(bundle: Bundle, names: Sequence[str], target: Target, *, stored: bool = False) -> list[Executable]:
    """Programs by name, several read at a time; arguments as `Bundle.executable` takes them."""
    with ThreadPoolExecutor(READING) as pool:
        return list(pool.map(lambda name: bundle.executable(name, target, stored=stored), names))
