"""What transformers finds out about itself and the environment at each import, kept between processes.

transformers reads all of its 2,700 sources to know what each of them offers (`define_import_structure`), and the record of each
installed package to know which package a module belongs to (`importlib.metadata.packages_distributions`). Both change with files alone:
what was found is kept beside the compiled programs, with the names, sizes and times of all files that it depends on.

Guaranteed: what does not match those files, or is damaged, is found out again and replaced, atomically; a folder that cannot be written, and another
interface than the one below, leave transformers as it is. Tried with transformers 5.19.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any
from unittest.mock import patch

from ..core import cache, files
from ..core.errors import FxhloError

MODULE = "transformers.utils.import_utils"
"""The module that asks for both."""
FUNCTION, PARAMETERS = "define_import_structure", ["module_path", "prefix"]
FOLDER = "imports"
"""Below the cache's root; a file for each environment and question."""
RECORDS = ("METADATA", "PKG-INFO", "RECORD", "SOURCES.txt", "installed-files.txt", "top_level.txt")
"""The files of an installed package that name it and its modules."""
Structure = dict[frozenset[str], dict[str, set[str]]]


@contextmanager
def while_imported() -> Iterator[None]:
    """While it is entered, MODULE is imported."""
    with patch.object(importlib.metadata, "packages_distributions", packages_distributions):
        yield


def use_in(module: ModuleType) -> None:
    """Has MODULE, which was just imported, use what is kept."""
    original = getattr(module, FUNCTION, None)
    if original is not None and list(inspect.signature(original).parameters) == PARAMETERS:
        setattr(module, FUNCTION, kept_structure(original))


def kept_structure(original: Callable[..., Structure]) -> Callable[..., Structure]:
    """transformers' `define_import_structure`, which keeps what it found of all models; one model's few files are read as ever."""
    source = inspect.getfile(inspect.unwrap(original))
    models = os.path.join(os.path.dirname(os.path.dirname(source)), "models")

    @functools.lru_cache
    def of_all() -> Any:
        return _kept(
            f"structure of {models}", [_file(source), *_sources(models)], lambda: _structure_to(original(models))
        )

    @functools.lru_cache
    @functools.wraps(original)
    def define_import_structure(module_path: Any, prefix: str | None = None) -> Structure:
        path = os.fspath(module_path)
        if path not in (models, os.path.join(models, "__init__.py")):
            return original(module_path, prefix)
        return _structure_of(of_all(), "" if prefix is None else f"{prefix}.")

    return define_import_structure


def packages_distributions() -> Mapping[str, list[str]]:
    """`importlib.metadata.packages_distributions`, kept; found out anew where a path is no folder or another finder knows packages."""
    paths = list(map(str, sys.path))
    others = [one for one in sys.meta_path if one is not PathFinder and hasattr(one, "find_distributions")]
    if any(type(one).__module__ != f"{__package__}.plugin" for one in others):
        return _find_packages()
    if any(path.endswith(".egg") or os.path.isfile(path) for path in paths):
        return _find_packages()
    where = os.getcwd() if "" in paths else ""
    return _kept(
        f"packages of {sys.prefix} {where}", [[path, _records(path or where)] for path in paths], _find_packages
    )


_find_packages = importlib.metadata.packages_distributions


def _kept(name: str, key: object, make: Callable[[], Any]) -> Any:
    """What `make`, whose answer is JSON, found for this name and key, or finds now."""
    wanted = _digest([key, sys.version])
    try:
        path = cache.default_root() / FOLDER / f"{_digest(name)[:32]}.json"
    except FxhloError:  # a user without a home
        return make()
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        stored = json.loads(path.read_bytes())
        if stored["key"] == wanted and stored["digest"] == _digest(stored["found"]):
            return stored["found"]
    found = make()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace_file(path, json.dumps({"key": wanted, "digest": _digest(found), "found": found}).encode())
    return found


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _sources(folder: str) -> Iterator[tuple[str, int, int]]:
    """(path, bytes, time in ns) of each source below the folder, in order."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            if entry.name == "__pycache__":
                continue
            if entry.is_dir():
                yield from _sources(entry.path)
            elif entry.name.endswith(".py"):
                yield _file(entry.path)


def _records(path: str) -> list[list[tuple[str, int, int]]]:
    """The packages that are installed in a folder: the files that say what they are."""
    try:
        names = sorted(name for name in os.listdir(path) if name.lower().endswith((".dist-info", ".egg-info")))
    except OSError:
        return []
    return [[_file(os.path.join(path, name, record)) for record in ("", *RECORDS)] for name in names]


def _file(path: str) -> tuple[str, int, int]:
    """(path, bytes, time in ns) of a file; -1 twice where there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return path, -1, -1
    return path, stat.st_size, stat.st_mtime_ns


def _structure_to(found: Structure) -> list[Any]:
    return [
        [sorted(backends), {name: sorted(of) for name, of in modules.items()}] for backends, modules in found.items()
    ]


def _structure_of(stored: list[Any], prefix: str) -> Structure:
    return {
        frozenset(backends): {f"{prefix}{name}": set(of) for name, of in modules.items()}
        for backends, modules in stored
    }
