"""The last word of `vllm serve`: why it did not start, in a few lines without a traceback.

The engine runs in a process of its own, whose error the front end does not have: it only says that the engine failed.
So the engine leaves its reason in a file that the front end named, and the front end prints it.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from ..errors import FxhloError

REPORT = "FXHLO_STARTUP_REPORT"
"""Environment variable with the file's path: set by the front end, inherited by the engine."""


def install() -> None:
    """Replaces the traceback of what ends this process. Called in the process of vLLM's command line only."""
    if REPORT in os.environ:
        return
    os.environ[REPORT] = str(Path(tempfile.gettempdir()) / f"fxhlo-startup-{os.getpid()}.txt")
    before = sys.excepthook

    def explain(kind: type[BaseException], problem: BaseException, traceback: TracebackType | None) -> None:
        message = explanation(problem)
        if message is None:
            before(kind, problem, traceback)
            return
        print(f"\nvllm could not start.\n{message}", file=sys.stderr)

    sys.excepthook = explain


def leave(problem: FxhloError) -> None:
    """In the engine: leaves the reason for the front end, if there is one."""
    path = os.environ.get(REPORT)
    if path:
        Path(path).write_text(str(problem))


def explanation(problem: BaseException) -> str | None:
    """What to print of an error that ends the front end; None where it is not one that has an explanation."""
    if isinstance(problem, FxhloError):
        return str(problem)
    if isinstance(problem, OSError) and problem.errno == errno.EADDRINUSE:
        return "another process listens on this port\n  next: choose another one with --port, or stop that process"
    report = Path(os.environ.get(REPORT, os.devnull))
    if report.is_file():
        text = report.read_text()
        report.unlink()
        return text
    if type(problem).__name__ == "ValidationError":  # pydantic's: vLLM refused its arguments
        lines = [line.strip() for line in str(problem).splitlines()[1:] if not line.strip().startswith("For further")]
        return "\n".join(line.split(" [type=")[0].removeprefix("Value error, ")[:600] for line in lines if line)
    return None
