"""Bundle: a folder with compiled programs and their weights; the only seam between compiler and runtime.

Comes in: modules, signatures, weights and executables (`BundleWriter`); or a folder (`Bundle.open`, `load`). Goes out:
`Executable`s. Guaranteed: a bundle is complete or absent; nothing damaged runs; loading one imports neither torch nor a
compiler front end. The format is in docs/bundle.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import files, weights
from .errors import BundleError, CompileError, UnsupportedError
from .manifest import FILE, Build, Entry, Manifest
from .targets import Options, Target
from .writer import BundleWriter, check_weights, near, with_build

if TYPE_CHECKING:
    from .buffers import Value
    from .executable import Executable
    from .pjrt import Buffer, Compiled

__all__ = ["Bundle", "BundleWriter", "Weights", "load"]


def load(path: str | Path, target: str | Target | None = None) -> Bundle:
    """`fxhlo.load`: opens a bundle. `load(dir)["main"](x)` runs it; a bundle with one entry is itself callable.

    target: where to run it; what it was built for where that is only one. Raises BundleError, UnsupportedError.
    """
    return Bundle.open(path, target)


class Bundle(Mapping[str, "Executable"]):
    """An opened bundle: a mapping of entry names to Executables with their weights bound, loaded when first asked for.

    entries: what is in it, without loading. verify: whether to read the digests of weight files: always, never, or
    (None) only where a file is not as it was left. Modules and executables are always verified.
    """

    def __init__(self, path: Path, manifest: Manifest, target: Target | None, verify: bool | None) -> None:
        self.path = path
        self.manifest = manifest
        self.target = target
        self._verify = verify
        self._bound: dict[str, Executable] = {}
        self._weights: Weights | None = None
        self._placed: dict[tuple[Target, int, str], Buffer] = {}

    @staticmethod
    def create(path: str | Path, **options: Any) -> BundleWriter:
        """A `BundleWriter`."""
        return BundleWriter(path, **options)

    @staticmethod
    def open(path: str | Path, target: str | Target | None = None, *, verify: bool | None = None) -> Bundle:
        """Reads the manifest; everything else when it is used. Raises BundleError, UnsupportedError (the target)."""
        folder = files.absolute(path, BundleError)
        return Bundle(folder, Manifest.read(folder), None if target is None else Target.parse(target), verify)

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Name -> signature, bindings, modules and builds."""
        return self.manifest.entries

    def __getitem__(self, name: str) -> Executable:
        if name not in self._bound:
            self._bound[name] = self._bind(self.executable(name))
        return self._bound[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __call__(self, *args: Value, **kwargs: Value) -> Any:
        """Calls the only entry. Raises BundleError where there are several."""
        if len(self) != 1:
            raise BundleError(
                f"the bundle has {len(self)} entries", where=self.path, next_step='name one: bundle["..."]'
            )
        return self[next(iter(self))](*args, **kwargs)

    def executable(
        self,
        name: str,
        target: str | Target | None = None,
        *,
        device_index: int = 0,
        options: Options | None = None,
        stored: bool = False,
    ) -> Executable:
        """The entry's program without weights. `origin` of the result says where it came from. stored: nothing is compiled.

        The stored executable is loaded where its fingerprint is this machine's and no other options are asked for;
        else the module is compiled: the one legalized for the target where there is one, else the portable one.
        Raises BundleError (damage, and where one is to be stored and does not load), CompileError, UnsupportedError.
        """
        from . import pjrt
        from .executable import Executable

        entry = self._entry(name)
        where = self._target(entry, target)
        mesh = entry.signature.mesh
        if mesh.devices > 1:
            self._check_mesh(entry, where)
        build = entry.builds.get(str(where), Build())
        options = dict(build.options if options is None else options)
        try:
            pjrt.require(build.custom_calls)
        except UnsupportedError as problem:
            raise BundleError(problem.message, where=self.path, next_step=problem.next_step) from problem
        why = _why_not(build, options, where)
        if build.executable and why is None:
            data = self._read(build.executable)
            try:
                loaded = pjrt.deserialize(data, where, device_index=device_index, options=options, mesh=mesh)
                return Executable(loaded, entry.signature, name=name, origin="stored executable")
            except CompileError as problem:
                why = problem.message
        if stored:
            raise BundleError(
                f"the program {name!r} does not load here as it is stored: {why}",
                where=self.path,
                next_step="make the bundle again on a machine like this one",
            )
        record, kind = (build.module, "legalized") if build.module else (entry.module, "portable")
        loaded = pjrt.compile(self._read(record), where, device_index=device_index, options=options, mesh=mesh)
        return Executable(loaded, entry.signature, name=name, origin=f"compiled from the {kind} module: {why}")

    def weights(self) -> Weights:
        """Name -> array, mapped from the files when it is asked for. Raises BundleError for damage at that time."""
        if self._weights is None:
            self._weights = Weights(self.path, self.manifest, self._verify)
        return self._weights

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
        """As `BundleWriter.add_target`, for a bundle that is there: its manifest is replaced at once."""
        from filelock import FileLock

        with files.explained("the bundle cannot be written", self.path, BundleError), FileLock(self.path / ".lock"):
            current = Manifest.read(self.path)
            self.manifest = with_build(
                current, self.path, entry, target, module, executable, fingerprint, custom_calls, options
            )
            files.replace_file(self.path / FILE, self.manifest.text())
        self._bound.pop(entry, None)

    def add_executable(self, executable: Executable, target: str | Target | None = None) -> None:
        """Keeps a compiled executable of this bundle, so that the next `open` on an equal machine loads it."""
        where = Target.parse(target or executable.loaded.target)
        build = self._entry(executable.name).builds.get(str(where), Build())
        self.add_target(
            executable.name, where, executable=executable, custom_calls=build.custom_calls, options=build.options
        )

    def verify(self) -> None:
        """Reads every file and its digest. Raises BundleError naming the first that is damaged."""
        for entry in self.entries.values():
            for record in (
                entry.module,
                *(one for build in entry.builds.values() for one in (build.module, build.executable)),
            ):
                if record:
                    self._read(record)
        for record in (*self.manifest.weight_files, *self.manifest.libraries):
            _intact(record, self.path, digest=True)

    @property
    def libraries(self) -> tuple[Path, ...]:
        """The compiled libraries of native kernels that its entries call; `verify` reads their digests."""
        return tuple(record.path(self.path) for record in self.manifest.libraries)

    def _bind(self, executable: Executable) -> Executable:
        """Binds the weights; each is placed once and shared by all entries, unless a program updates it."""
        arguments = executable.signature.weights
        if not arguments:
            return executable
        check_weights(self._entry(executable.name), self.manifest.weights, self.path)
        from .buffers import place

        device, stored = executable.loaded.device, self.weights()
        chosen: dict[str, Value] = {}
        for argument in arguments:
            key = (device.target, device.raw.id, argument.name)
            if argument.alias is not None:
                chosen[argument.name] = stored[argument.name]
                continue
            if key not in self._placed:
                self._placed[key] = place(stored[argument.name], argument, device, shared=True)
            chosen[argument.name] = self._placed[key]
        return executable.bind(chosen)

    def _entry(self, name: str) -> Entry:
        try:
            return self.entries[name]
        except KeyError:
            raise BundleError(
                f"there is no entry {name!r}", where=self.path, next_step=near(name, self.entries)
            ) from None

    def _check_mesh(self, entry: Entry, target: Target) -> None:
        """Raises UnsupportedError where the entry's mesh has more devices than this process."""
        from . import pjrt

        mesh = entry.signature.mesh
        try:
            pjrt.device(target, mesh=mesh)
        except UnsupportedError as problem:
            raise UnsupportedError(
                f"the entry {entry.name!r} runs on {mesh.devices} devices ({mesh}), and this process has "
                f"{pjrt.device_count(target)} of {target.family}",
                where=self.path,
                next_step=f"load it where there are {mesh.devices}, or make the bundle for one device",
            ) from problem

    def _target(self, entry: Entry, target: str | Target | None) -> Target:
        if target is not None or self.target is not None:
            return Target.parse(target or self.target or "cpu")
        return Target.parse(next(iter(entry.builds)) if len(entry.builds) == 1 else "cpu")

    def _read(self, record: files.FileRecord) -> bytes:
        """A module or an executable, verified."""
        _intact(record, self.path, digest=False)
        with files.explained("a file of the bundle cannot be read", record.path(self.path), BundleError):
            data = record.path(self.path).read_bytes()
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise _damaged(record, self.path, "its content is not what was written")
        return data

    def __repr__(self) -> str:
        return f"<Bundle {self.name} at {self.path}: {', '.join(list(self.entries)[:8])}>"


class Weights(Mapping[str, np.ndarray]):
    """The weights of a bundle by name: read-only numpy views of mapped files."""

    def __init__(self, root: Path, manifest: Manifest, verify: bool | None) -> None:
        self._root = root
        self._manifest = manifest
        self._verify = verify
        self._opened: dict[int, tuple[dict[str, weights.Stored], np.ndarray]] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        ref = self._manifest.weights[name]
        stored, mapped = self._open(ref.file)
        path = self._manifest.weight_files[ref.file].path(self._root)
        found = stored.get(ref.key)
        if found is None or (found.dtype, found.shape) != (ref.dtype, ref.shape):
            raise BundleError(
                f"weight {name} should be {ref.dtype}{list(ref.shape)} and tensor {ref.key!r} is {found}",
                where=path,
                next_step="make the bundle again",
            )
        return weights.view(found, mapped)

    def __iter__(self) -> Iterator[str]:
        return iter(self._manifest.weights)

    def __len__(self) -> int:
        return len(self._manifest.weights)

    def _open(self, number: int) -> tuple[dict[str, weights.Stored], np.ndarray]:
        if number not in self._opened:
            record = self._manifest.weight_files[number]
            path = record.path(self._root)
            before = _identity(path)
            _intact(record, self._root, digest=self._verify)
            opened = (weights.tensors(path), weights.mapped(path))
            if _identity(path) != before:
                raise _damaged(record, self._root, "it was replaced while it was opened")
            self._opened[number] = opened
        return self._opened[number]


def _why_not(build: Build, options: Options, target: Target) -> str | None:
    """Why the stored executable is not taken; None where it is."""
    from . import pjrt

    if build.executable is None:
        return f"no executable is stored for {target}"
    if options != dict(build.options):
        return f"it was stored for options {dict(build.options)}"
    here = pjrt.fingerprint(target)
    there = build.fingerprint
    differ = [key for key in sorted(here.keys() | there.keys()) if here.get(key) != there.get(key)]
    if not differ:
        return None
    return "the stored executable is for " + ", ".join(
        f"{key} {there.get(key)} (here {here.get(key)})" for key in differ
    )


def _identity(path: Path) -> tuple[int, ...] | None:
    """Tells a file from another of the same name; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _intact(record: files.FileRecord, root: Path, *, digest: bool | None) -> None:
    damage = record.damage(root, digest=digest)
    if damage is not None:
        raise _damaged(record, root, damage)


def _damaged(record: files.FileRecord, root: Path, damage: str) -> BundleError:
    if not root.exists():
        return BundleError(
            "the bundle is not where it was opened", where=root, next_step="open it where it is now, or make it again"
        )
    outside = "put that file back as it was, or " if Path(record.file).is_absolute() else ""
    what = f"a file of the bundle is damaged: {damage}"
    return BundleError(what, where=record.path(root), next_step=f"{outside}make the bundle again")
