"""The seal: once a serving process is ready, nothing may be traced or compiled in it any more.

`close(why)` is called when all programs are there; from then on capture and compilation call `check` and raise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import FxhloError

_closed: str | None = None


class SealedError(FxhloError):
    """Something was about to be traced or compiled in a process that promised not to."""


def close(why: str) -> None:
    """From now on `check` raises. `why` says who promised, such as "the engine is serving"."""
    global _closed
    _closed = why


def reopen() -> None:
    """Takes the promise back: the engine was shut down."""
    global _closed
    _closed = None


def check(action: str) -> None:
    """Raises SealedError if the process is sealed. `action` says what was about to happen."""
    if _closed is not None:
        raise SealedError(
            f"{action} after {_closed}: all programs are made before",
            next_step="report this as a bug of fxhlo: the closed set of programs lacks one",
        )


@contextmanager
def closed(why: str) -> Iterator[None]:
    """`close` for the length of a with block."""
    close(why)
    try:
        yield
    finally:
        reopen()
