"""The seal: once a serving process is ready, nothing may be traced or compiled in it any more.

`close(why)` is called when all programs are there; from then on capture and compilation call `check` and raise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import FxhloError

_closed: str | None = None


class SealedError(FxhloError):
    """An attempt to trace or compile after the process was sealed."""


def close(why: str) -> None:
    """Makes `check` raise from now on. why: the reason in the error, such as "the engine is serving"."""
    global _closed
    _closed = why


def reopen() -> None:
    """Lets `check` pass again, after the engine was shut down."""
    global _closed
    _closed = None


def check(action: str) -> None:
    """Raises SealedError if the process is sealed. action: the attempt, such as "compiling a module"."""
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
