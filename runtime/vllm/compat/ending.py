"""When vLLM's front end begins to end its engines, and which of them had ended before."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from multiprocessing.connection import wait
from typing import Any

from vllm.v1.engine.core_client import BackgroundResources
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.utils import CoreEngineProcManager

ENDING = 1.0
"""Seconds within which a process that ends has its status, after its sentinel says that it does."""
_watched = False
_dead = False
"""Whether an engine has told the front end that an error ends it: its process may run still when vLLM kills it."""


def when_engines_end(tell: Callable[[Iterable[int | None]], None]) -> None:
    """Has `tell` called before vLLM ends its engines for the first time, with their exit statuses, None of those that run, and 1 of one
    that has said that an error ends it. Once in a process.

    vLLM sends them SIGTERM, and SIGKILL at once where --shutdown-timeout is 0.
    """
    global _watched
    if _watched:
        return
    _watched = True
    shutdown = CoreEngineProcManager.shutdown

    @wraps(shutdown)
    def told(self: CoreEngineProcManager, timeout: float | None = None) -> None:
        if not self.manager_stopped.is_set():
            for one in self.processes:
                if wait([one.sentinel], 0):
                    one.join(ENDING)
            tell([*(one.exitcode for one in self.processes), *([1] if _dead else [])])
        shutdown(self, timeout)

    CoreEngineProcManager.shutdown = told  # type: ignore[method-assign]
    heard = BackgroundResources.validate_alive

    @wraps(heard)
    def noted(self: BackgroundResources, frames: Any) -> None:
        global _dead
        try:
            heard(self, frames)
        except EngineDeadError:
            _dead = True
            raise

    BackgroundResources.validate_alive = noted  # type: ignore[method-assign]
