"""`--import`: modules of the user that register ops, targets or kernels, imported before anything is looked up."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from ..runtime.core.errors import FxhloError
from . import console


def import_words(words: Iterable[str]) -> None:
    """Imports each, in order: a module by its name, or a .py file. Raises FxhloError with what the module raised."""
    for word in words:
        _import(word)


def _import(word: str) -> None:
    try:
        if not word.endswith(".py"):
            sys.path.append(".")  # the command's own folder is not on the path
            importlib.import_module(word)
            return
        spec = importlib.util.spec_from_file_location(Path(word).stem, word)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    except Exception as problem:
        raise FxhloError(
            f"--import {word} failed: {type(problem).__name__}: {console.first_line(problem)}",
            next_step="name a module that this Python can import, or a .py file",
        ) from problem
