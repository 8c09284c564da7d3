"""When vLLM's front end begins to end its engines, and which of them had ended before."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from multiprocessing.connection import wait

from vllm.v1.engine.utils import CoreEngineProcManager

ENDING = 1.0
"""Seconds within which a process that ends has its status, after its sentinel says that it does."""
_watched = False


def when_engines_end(tell: Callable[[Iterable[int | None]], None]) -> None:
    """Has `tell` called before vLLM ends its engines for the first time, with their exit statuses, None of those that run. Once in a process.

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
            tell([one.exitcode for one in self.processes])
        shutdown(self, timeout)

    CoreEngineProcManager.shutdown = told  # type: ignore[method-assign]
