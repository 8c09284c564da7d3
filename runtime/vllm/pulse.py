"""Pulse: what a start is at, told where it has said nothing for a while.

Comes in: how progress is told (`Saying`), and what begins and ends, in any thread. Goes out: the same lines, and one more for each while of silence.
Guaranteed: a start that says something in time gets no line more; the thread ends with the start.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from .progress import Saying

QUIET = 60.0
"""Seconds without a line after which one is due."""


class Pulse:
    """with Pulse(progress) as pulse: pulse is a `Saying`; with pulse.at("capturing the model"): ... quiet: seconds, `QUIET`."""

    def __init__(self, say: Saying, quiet: float = QUIET) -> None:
        self._say, self._quiet = say, quiet
        self._said = time.monotonic()
        self._began: dict[str, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="fxhlo-pulse", daemon=True)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def __call__(self, message: str, *, done: int | None = None, of: int | None = None) -> None:
        self._said = time.monotonic()
        self._say(message, done=done, of=of)

    def begins(self, what: str) -> None:
        """`what`, such as "compiling tokens=8,requests=8", goes on until `ends`."""
        self._began[what] = time.monotonic()

    def ends(self, what: str) -> None:
        """No-op for what has not begun."""
        self._began.pop(what, None)

    @contextmanager
    def at(self, what: str) -> Iterator[None]:
        """`begins` and `ends`."""
        self.begins(what)
        try:
            yield
        finally:
            self.ends(what)

    def _watch(self) -> None:
        while not self._ended.wait(max(0.0, self._said + self._quiet - time.monotonic())):
            now = time.monotonic()
            if now < self._said + self._quiet:
                continue
            going = [f"{what} ({now - began:.0f} s)" for what, began in list(self._began.items())]
            self(f"still {', '.join(going)}" if going else "still at it")
