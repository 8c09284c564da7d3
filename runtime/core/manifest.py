"""manifest.json as frozen dataclasses. The format is in docs/bundle.md.

Comes in: the file's text. Goes out: a `Manifest`. Guaranteed: a manifest that parses is complete, of a version that is
known, unchanged since it was written (it carries its own digest), and names no file outside of the bundle but weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import BundleError, SignatureError
from .files import FileRecord
from .mesh import ONE_DEVICE, Mesh
from .signature import Signature

FILE = "manifest.json"
FORMAT = "fxhlo-bundle"
VERSION = 2
"""Of the format. 2 added meshes and shardings, and stores legalized modules as portable artifacts; 1 is refused."""


def holds_bundle(folder: Path) -> bool:
    """Whether the folder has a bundle's manifest, perhaps a damaged one: other programs call theirs manifest.json too."""
    try:
        content = json.loads((folder / FILE).read_bytes())
    except OSError:
        return False
    except ValueError:
        return True
    return isinstance(content, dict) and content.get("format") == FORMAT


@dataclass(frozen=True)
class Build:
    """An entry for one target: the legalized module and the compiled executable, where they were stored.

    custom_calls: what the legalized module calls at run time. options: XLA's, with which it was and will be compiled.
    fingerprint: `pjrt.fingerprint` of the machine that compiled `executable`.
    """

    module: FileRecord | None = None
    custom_calls: tuple[str, ...] = ()
    options: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    executable: FileRecord | None = None
    fingerprint: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        return {
            "module": self.module and self.module.to_json(),
            "custom_calls": list(self.custom_calls),
            "options": dict(self.options),
            "executable": self.executable and self.executable.to_json(),
            "fingerprint": dict(self.fingerprint),
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Build:
        module, executable = data["module"], data["executable"]
        return Build(
            module and FileRecord.from_json(module),
            tuple(data["custom_calls"]),
            dict(data["options"]),
            executable and FileRecord.from_json(executable),
            dict(data["fingerprint"]),
        )


@dataclass(frozen=True)
class Entry:
    """One program: its portable module, signature, sizes of symbolic dimensions, and builds by target."""

    name: str
    module: FileRecord
    signature: Signature
    bindings: Mapping[str, int] = field(default_factory=dict)
    builds: Mapping[str, Build] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        return {
            "module": self.module.to_json(),
            "signature": self.signature.to_json(),
            "bindings": dict(self.bindings),
            "builds": {target: build.to_json() for target, build in self.builds.items()},
        }

    @staticmethod
    def from_json(name: str, data: dict[str, Any]) -> Entry:
        builds = {target: Build.from_json(build) for target, build in data["builds"].items()}
        signature = Signature.from_json(data["signature"])
        return Entry(name, FileRecord.from_json(data["module"]), signature, dict(data["bindings"]), builds)


@dataclass(frozen=True)
class WeightRef:
    """Where a weight lies: tensor `key` of the safetensors file `file` (an index into `Manifest.weight_files`)."""

    file: int
    key: str
    dtype: str
    shape: tuple[int, ...]

    def to_json(self) -> dict[str, object]:
        return {"file": self.file, "key": self.key, "dtype": self.dtype, "shape": list(self.shape)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> WeightRef:
        return WeightRef(int(data["file"]), str(data["key"]), str(data["dtype"]), tuple(data["shape"]))


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json. made: the writer and its versions. notes: free JSON of the writer's. libraries: of native kernels, which
    the entries call."""

    name: str
    entries: Mapping[str, Entry]
    made: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, object] = field(default_factory=dict)
    weight_files: tuple[FileRecord, ...] = ()
    weights: Mapping[str, WeightRef] = field(default_factory=dict)
    libraries: tuple[FileRecord, ...] = ()

    @property
    def mesh(self) -> Mesh:
        """The mesh of all entries, which share the weights' placement; of stages on devices of their own, the first one's."""
        return next((entry.signature.mesh for entry in self.entries.values()), ONE_DEVICE)

    def text(self) -> bytes:
        """The content of manifest.json. Raises BundleError where notes, bindings or options are no JSON."""
        content: dict[str, object] = {
            "name": self.name,
            "made": dict(self.made),
            "notes": dict(self.notes),
            "entries": {name: entry.to_json() for name, entry in self.entries.items()},
            "weight_files": [record.to_json() for record in self.weight_files],
            "weights": {name: ref.to_json() for name, ref in self.weights.items()},
        }
        if self.libraries:
            content["libraries"] = [record.to_json() for record in self.libraries]
        try:
            whole = {"format": FORMAT, "version": VERSION, "sha256": _digest(content), **content}
        except (TypeError, ValueError, RecursionError) as problem:
            raise BundleError(
                f"a bundle's notes, bindings and options must be JSON: {problem}",
                next_step="use strings, numbers, lists and dicts",
            ) from problem
        return json.dumps(whole, indent=1, ensure_ascii=False).encode(
            errors="surrogatepass"
        )  # names of files need be no Unicode

    @staticmethod
    def read(folder: Path) -> Manifest:
        """Raises BundleError where it is missing, damaged or of another version."""
        path = folder / FILE
        try:
            data = json.loads(path.read_bytes())
            if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
        except (FileNotFoundError, NotADirectoryError):
            what = "the folder is no bundle: it has no manifest.json"
            if not folder.is_dir():
                what = "a bundle is a folder, and this is a file" if folder.exists() else "there is no such folder"
            raise BundleError(
                what,
                where=folder,
                next_step="name the folder that fxhlo.lower(...).save(DIR) or lower-model MODEL -o DIR wrote",
            ) from None
        except OSError as problem:
            raise BundleError(f"the manifest cannot be read: {problem.strerror}", where=path) from problem
        except (ValueError, RecursionError) as problem:
            raise _damaged(path, problem) from problem
        version = data.pop("version", None)
        if version != VERSION:
            older = type(version) is int and version < VERSION
            raise BundleError(
                f"the bundle has format version {version}, and this fxhlo reads version {VERSION}",
                where=path,
                next_step="make the bundle again" if older else "update fxhlo, or make the bundle again",
            )
        if data.pop("sha256", None) != _digest(data):
            raise _damaged(path, "its digest does not fit its content")
        try:
            return Manifest._of(data)
        except (KeyError, TypeError, ValueError, AttributeError, SignatureError) as problem:
            raise _damaged(path, problem) from problem

    @staticmethod
    def _of(data: dict[str, Any]) -> Manifest:
        made = Manifest(
            str(data["name"]),
            {name: Entry.from_json(name, entry) for name, entry in data["entries"].items()},
            dict(data["made"]),
            dict(data["notes"]),
            tuple(FileRecord.from_json(record, outside=True) for record in data["weight_files"]),
            {name: WeightRef.from_json(ref) for name, ref in data["weights"].items()},
            tuple(FileRecord.from_json(record) for record in data.get("libraries", ())),
        )
        if len({entry.signature.mesh.axes for entry in made.entries.values()}) > 1:
            raise ValueError("its entries are for different meshes")
        for name, ref in made.weights.items():
            if not 0 <= ref.file < len(made.weight_files):
                raise ValueError(f"weight {name} lies in file {ref.file} of {len(made.weight_files)}")
        return made


def _digest(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _damaged(path: Path, why: object) -> BundleError:
    return BundleError(f"the manifest is damaged: {why}", where=path, next_step="make the bundle again")
