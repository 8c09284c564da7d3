"""What a start is doing, while it does it: lines through vLLM's logger, and on a terminal a bar for programs being compiled."""

from __future__ import annotations

import sys
import time
from logging import Logger
from types import TracebackType
from typing import Any


class Progress:
    """with Progress(logger) as progress: progress("capturing the model"); progress("compiled ...", done=1, of=12)."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._bar: Any = None
        self._began = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, message: str, *, done: int | None = None, of: int | None = None) -> None:
        """A stage that begins or, with a count, one of `of` things that is done."""
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
