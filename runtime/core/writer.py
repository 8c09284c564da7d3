"""BundleWriter: writes a bundle atomically. The format is in docs/bundle.md.

Comes in: portable modules, signatures, weights, legalized modules and executables. Goes out: a folder that
`Bundle.open` takes. Guaranteed: the previous bundle at that path stays until the new one is complete, and stays after a failure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from . import files, weights
from .errors import BundleError
from .manifest import FILE, Build, Entry, Manifest, WeightRef, holds_bundle
from .signature import Argument, Signature
from .targets import Options, Target

if TYPE_CHECKING:
    from .buffers import Value
    from .executable import Executable
    from .pjrt import Compiled

SHARD_BYTES = 5_000_000_000


class BundleWriter:
    """Writes a bundle; use it in a `with` block. The bundle appears at `path` when the block ends without an error.

    What was there before stays until then, and stays for good if the block raises or the process is killed. Raises
    BundleError where `path` is something else than a bundle, or cannot be written (no space, no permission).
    One thread at a time.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        created_by: str = "fxhlo",
        notes: Mapping[str, object] | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self.path = files.absolute(path, BundleError)
        self.manifest = Manifest(name or self.path.name, {}, {"by": created_by}, notes or {})
        self._shard_bytes = shard_bytes
        self._stack = ExitStack()
        self._folder: Path | None = None

    def __enter__(self) -> BundleWriter:
        with self._explained():
            bundle_or_nothing = not self.path.exists() or holds_bundle(self.path)
            if not bundle_or_nothing and (self.path.is_file() or any(self.path.iterdir())):
                raise BundleError(
                    "there is something else than a bundle, and it is not overwritten",
                    where=self.path,
                    next_step="choose another folder, or empty this one",
                )
            self._folder = self._stack.enter_context(files.staged(self.path))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, problem, traceback)
            return
        with self._explained(), self._stack:
            self._finish()

    def add_entry(
        self, name: str, module: bytes, signature: Signature, *, bindings: Mapping[str, int] | None = None
    ) -> None:
        """A program: its portable StableHLO artifact, signature, and the sizes of its symbolic dimensions."""
        if name in self.manifest.entries:
            raise BundleError(f"there is an entry {name!r} already", where=self.path)
        if self.manifest.entries and signature.mesh.axes != self.manifest.mesh.axes:
            raise BundleError(
                f"the entry {name!r} is for the mesh {signature.mesh}, and the bundle's other entries are for {self.manifest.mesh}",
                where=self.path,
                next_step="write one bundle a mesh: entries share their weights' placement",
            )
        with self._explained():
            stored = files.store(self._root, "modules", ".mlirbc", module)
        entry = Entry(name, stored, signature, dict(bindings or {}))
        self.manifest = replace(self.manifest, entries={**self.manifest.entries, name: entry})

    def add_target(
        self,
        entry: str,
        target: str | Target,
        *,
        module: bytes | None = None,
        executable: Executable | Compiled | bytes | None = None,
        fingerprint: Mapping[str, str] | None = None,
        custom_calls: Iterable[str] = (),
        options: Options | None = None,
    ) -> None:
        """A build of an entry for one target: the legalized module, the compiled executable, or both.

        executable: bytes need the `pjrt.fingerprint` of the machine they are for; the others are of this machine.
        custom_calls: call targets of the legalized module. options: XLA's, with which it is compiled.
        """
        with self._explained():
            self.manifest = with_build(
                self.manifest, self._root, entry, target, module, executable, fingerprint, custom_calls, options
            )

    def add_library(self, content: bytes) -> None:
        """A compiled library of native kernels that entries call, so that another machine of this kind needs no compiler."""
        with self._explained():
            stored = files.store(self._root, "native", ".so", content)
        self.manifest = replace(self.manifest, libraries=(*self.manifest.libraries, stored))

    def add_weights(self, arrays: Mapping[str, Value] | Iterable[tuple[str, Value]]) -> None:
        """Weights by argument name: numpy arrays, or host tensors with DLPack. Written in files of under 5 GB."""
        pairs = arrays.items() if isinstance(arrays, Mapping) else arrays
        for shard in weights.shards(((name, _array(name, value)) for name, value in pairs), self._shard_bytes):
            number = len(self.manifest.weight_files)
            with self._explained():
                stored = weights.write(self._root / f"weights-{number:05d}.safetensors", shard, self._root)
            refs = {name: WeightRef(number, name, array.dtype.name, array.shape) for name, array in shard.items()}
            self._note_weights(stored, refs)

    def refer_weights(self, file: str | Path, keys: Mapping[str, str] | None = None, *, digest: bool = False) -> None:
        """Weights that stay in a safetensors file outside of the bundle.

        keys: argument name -> tensor key; without it, all tensors under their own names. digest: read the file
        once for its sha256, so that it may be copied; without, its size and time must stay what they are.
        """
        path = files.absolute(file, BundleError)
        there = weights.tensors(path)
        with self._explained():
            stored = files.record(path, digest=digest)
        refs = {}
        for name, key in (keys or {key: key for key in there}).items():
            if key not in there:
                raise BundleError(f"there is no tensor {key!r}", where=path, next_step=near(key, there))
            refs[name] = WeightRef(len(self.manifest.weight_files), key, there[key].dtype, there[key].shape)
        self._note_weights(stored, refs)

    def _note_weights(self, stored: files.FileRecord, refs: Mapping[str, WeightRef]) -> None:
        if twice := sorted(refs.keys() & self.manifest.weights.keys()):
            raise BundleError(f"weight {twice[0]!r} is there already", where=self.path)
        self.manifest = replace(
            self.manifest,
            weight_files=(*self.manifest.weight_files, stored),
            weights={**self.manifest.weights, **refs},
        )

    def _finish(self) -> None:
        """Checks that entries and weights fit, and writes the manifest last."""
        from . import pjrt

        if not self.manifest.entries:
            raise BundleError("a bundle without entries", where=self.path, next_step="add_entry first")
        if self.manifest.weights:
            for entry in self.manifest.entries.values():
                check_weights(entry, self.manifest.weights, self.path)
        made = {**self.manifest.made, **pjrt.versions(), "at": datetime.now(UTC).isoformat(timespec="seconds")}
        self.manifest = replace(self.manifest, made=made)
        files.replace_file(self._root / FILE, self.manifest.text())

    @property
    def _root(self) -> Path:
        if self._folder is None:
            raise BundleError("the bundle is not open for writing", where=self.path, next_step="use it in a with block")
        return self._folder

    def _explained(self) -> AbstractContextManager[None]:
        return files.explained("the bundle cannot be written", self.path, BundleError)


def with_build(
    manifest: Manifest,
    root: Path,
    name: str,
    target: str | Target,
    module: bytes | None,
    executable: Executable | Compiled | bytes | None,
    fingerprint: Mapping[str, str] | None,
    custom_calls: Iterable[str],
    options: Options | None,
) -> Manifest:
    """`manifest` with a build of the entry `name` for `target`, whose files are now in `root`."""
    from . import pjrt

    where = Target.parse(target)
    if name not in manifest.entries:
        raise BundleError(f"there is no entry {name!r}", where=root, next_step=near(name, manifest.entries))
    entry = manifest.entries[name]
    build = replace(
        entry.builds.get(str(where), Build()), custom_calls=tuple(custom_calls), options=dict(options or {})
    )
    if module is not None:
        build = replace(build, module=files.store(root, "modules", ".mlirbc", module))
    if executable is not None:
        if isinstance(executable, bytes) and fingerprint is None:
            raise BundleError("an executable as bytes needs its fingerprint", next_step="pass pjrt.fingerprint(target)")
        data = executable if isinstance(executable, bytes) else executable.serialize()
        stored = files.store(root, "executables", ".pjrt", data)
        build = replace(build, executable=stored, fingerprint=dict(fingerprint or pjrt.fingerprint(where)))
    changed = replace(entry, builds={**entry.builds, str(where): build})
    return replace(manifest, entries={**manifest.entries, name: changed})


def check_weights(entry: Entry, stored: Mapping[str, WeightRef], where: Path) -> None:
    """Raises BundleError unless each weight that the entry takes is stored with its shape and dtype."""
    for argument in entry.signature.weights:
        ref = stored.get(argument.name)
        if ref is None:
            raise BundleError(
                f"the bundle has no weight {argument.name!r}, which the entry {entry.name!r} takes",
                where=where,
                next_step="add_weights when writing it; or bundle.executable(name).bind(weights)",
            )
        if (ref.dtype, ref.shape) != (argument.dtype, argument.shape):
            raise BundleError(
                f"the entry {entry.name!r} takes {argument}, and the bundle has {ref.dtype}{list(ref.shape)}",
                where=where,
            )


def _array(name: str, value: Value) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    from .buffers import host_array

    return host_array(value, Argument(name, "weight", (), "float32"))


def near(name: str, known: Iterable[str]) -> str:
    names = list(known)
    return "there are " + (", ".join(get_close_matches(name, names, 5, 0.4) or names[:8]) or "none")
