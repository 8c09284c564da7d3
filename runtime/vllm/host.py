"""Patches torch on a host without an accelerator: calls that vLLM makes on every platform but its own CPU one do nothing.

Imports nothing heavy: the platform needs it in every process, including the front end's.
"""

from __future__ import annotations

import torch


def without_accelerator() -> None:
    """Makes `torch.accelerator.empty_cache`, `empty_host_cache` and `synchronize` do nothing where there is none.

    vLLM's loader, and its clean-up after the engine, call them on every platform but its own CPU one, whose runner
    replaces them in the same way; on a CPU build of torch they raise.
    """
    if torch.accelerator.is_available():
        return
    for name in ("empty_cache", "empty_host_cache", "synchronize"):
        setattr(torch.accelerator, name, _nothing)


def _nothing(*_: object, **__: object) -> None:
    return None
