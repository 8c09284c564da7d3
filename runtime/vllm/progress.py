"""Progress of a start: lines in vLLM's log, and on a terminal a bar for the programs being compiled."""

from __future__ import annotations

import sys
import time
from logging import Logger
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tqdm import tqdm


class Saying(Protocol):
    """What a start tells of itself: a stage begins, or `done` of `of` items are finished."""

    def __call__(self, message: str, *, done: int | None = None, of: int | None = None) -> None: ...


class Progress:
    """with Progress(logger) as progress: progress("capturing the model"); progress("compiled ...", done=1, of=12)."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._bar: tqdm | None = None
        self._began = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, message: str, *, done: int | None = None, of: int | None = None) -> None:
        """Reports that a stage begins or, with counts, that `done` of `of` items are finished."""
        if done is None or of is None:
            self._logger.info("%s (%.0f s since the programs were asked for)", message, time.monotonic() - self._began)
        elif sys.stderr.isatty():
            self._advance(done, of)
        else:
            self._logger.info("%s (%d of %d)", message, done, of)

    def _advance(self, done: int, of: int) -> None:
        from tqdm.auto import tqdm

        if self._bar is None:
            self._bar = tqdm(total=of, desc="Compiling programs", unit="program")
        self._bar.update(done - self._bar.n)
        if done == of:
            self._bar.close()
