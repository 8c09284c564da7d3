"""Versions of jax and jaxlib that fxhlo was tried with (docs/versions.md), and what it says about another one.

jax above 0.10.2 needs Python 3.12.
"""

from __future__ import annotations

import importlib.metadata
import sys

from .errors import FxhloError

TRIED = ("0.10.2", "0.11.2", "0.12.0.1")
"""jax and jaxlib, always of the same version."""


def misfit(what: str, problem: Exception) -> FxhloError:
    """The error for a jaxlib that lacks what fxhlo uses of `what`, a private interface; `problem` says what it lacks."""
    try:
        found = f"jaxlib {importlib.metadata.version('jaxlib')}"
    except importlib.metadata.PackageNotFoundError:
        found = "no jaxlib"
    fits = TRIED[-1] if sys.version_info >= (3, 12) else TRIED[0]
    return FxhloError(
        f"{found} is installed, whose {what} fxhlo does not know ({problem}); it was tried with jaxlib {', '.join(TRIED)}",
        next_step=f"pip install jax=={fits} jaxlib=={fits}",
    )
