"""`--import`: modules of the user that register ops, targets or kernels, imported before anything is looked up."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from ..runtime.core.errors import FxhloError
from . import console
from .console import UsageError

NAMED = "name a module that this Python can import, from here or from its packages, or a .py file"


def import_words(words: Iterable[str]) -> None:
    """Imports each, in order: a module by its name, or a .py file.

    Raises UsageError where there is no such module or file, FxhloError with what a module raised.
    """
    for word in words:
        _import(word)


def _import(word: str) -> None:
    if word.endswith(".py") and not Path(word).is_file():
        raise UsageError(f"--import {word}: there is no such file", next_step=NAMED)
    if not word.endswith(".py") and not all(part.isidentifier() for part in word.split(".")):
        raise UsageError(f"--import {word}: this is not the name of a module", next_step=NAMED)
    try:
        if not word.endswith(".py"):
            if "." not in sys.path:
                sys.path.append(".")  # the command's own folder is not on the path
            importlib.import_module(word)
            return
        spec = importlib.util.spec_from_file_location(Path(word).stem, word)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    except Exception as problem:
        if isinstance(problem, ModuleNotFoundError) and f"{word}.".startswith(f"{problem.name}."):
            raise UsageError(f"--import {word}: there is no module {problem.name}", next_step=NAMED) from None
        raise FxhloError(
            f"--import {word} failed: {type(problem).__name__}: {console.first_line(problem)}",
            where=_raised_at(problem),
            next_step="mend the module, or leave out --import",
        ) from problem


def _raised_at(problem: BaseException) -> str:
    """File and line of the module's own that raised `problem`: the last that is not Python's import system."""
    if isinstance(problem, SyntaxError) and problem.filename:
        return f"{problem.filename}:{problem.lineno}"
    frames = [frame for frame in traceback.extract_tb(problem.__traceback__) if "importlib" not in frame.filename]
    return f"{frames[-1].filename}:{frames[-1].lineno}"
