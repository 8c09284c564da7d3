"""The last word of `vllm serve`: why it did not start, in a few lines without a traceback.

The engine runs in a process of its own, whose error the front end does not have: it only says that the engine failed.
So the engine leaves its reason in a file that the front end named, and the front end prints it. Beside it lies a mark while
an engine runs: where it is left, the engine was killed or failed, and the server, which vLLM ends in order, ends with status 1.
"""

from __future__ import annotations

import atexit
import errno
import os
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from ..core.errors import FxhloError

REPORT = "FXHLO_STARTUP_REPORT"
"""Environment variable with the file's path: set by the front end, inherited by the engine."""

LONGEST = 400
"""Characters of somebody else's message: vLLM's about an unknown architecture names all 400 that it knows."""


def install() -> None:
    """Replaces the traceback of what ends this process. Called in the process of vLLM's command line only."""
    if REPORT in os.environ:
        return
    os.environ[REPORT] = str(Path(tempfile.gettempdir()) / f"fxhlo-startup-{os.getpid()}.txt")
    atexit.register(_end, os.getpid())
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


def engine_begins() -> None:
    """In the engine: marks that it runs, for the front end, if there is one."""
    if REPORT in os.environ:
        _mark().touch()


def engine_ends(problem: BaseException | None) -> None:
    """In the engine, as it shuts down: takes the mark away unless a problem, other than being asked to end, ended it."""
    if REPORT in os.environ and (problem is None or isinstance(problem, SystemExit)):
        _mark().unlink(missing_ok=True)


def _mark() -> Path:
    return Path(os.environ[REPORT]).with_suffix(".running")


def _end(front: int) -> None:
    """Last of the front end: gives the process status 1 where its engine did not end in order. Its forks end otherwise."""
    if os.getpid() == front and _mark().exists():
        _mark().unlink(missing_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


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
    if _in_config(problem.__traceback__):
        return f"{told(problem)}\n  next: check the model's path, its config.json and the command's options"
    return None


def _in_config(traceback: TracebackType | None) -> bool:
    """Whether it was raised while vLLM made its config of the arguments and of the model's config.json."""
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename.endswith("vllm/engine/arg_utils.py"):
            return True
        traceback = traceback.tb_next
    return False


def told(problem: BaseException) -> str:
    """What pydantic, transformers or huggingface_hub say, without their wrapping and cut where it gets long."""
    lines = [line.strip() for line in str(problem).splitlines()]
    if type(problem).__name__ == "ValidationError":  # pydantic's: the first line counts errors, the last is a link
        lines = [line for line in lines[1:] if not line.startswith("For further information")]
    told = "\n".join(line.split(" [type=")[0].removeprefix("Value error, ") for line in lines if line)
    return told if len(told) <= LONGEST else f"{told[:LONGEST]}..."
