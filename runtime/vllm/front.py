"""Explains why `vllm serve` did not start, in a few lines without a traceback.

The engine runs in a process of its own, and vLLM's front end reports only that it failed. So the engine writes its error to a
file that the front end chose, and the front end prints it. A marker file beside it exists while each engine runs, and says so where
it has failed: if one is still there at the end, its engine failed or was killed, and the front end exits with status 1 where vLLM would
exit with 0; unless it was vLLM that killed it, as it does at once when it is asked to end (--shutdown-timeout is 0).
"""

from __future__ import annotations

import atexit
import errno
import os
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

from ..core.errors import FxhloError
from .conditions import condition_of
from .refusals import ray_for
from .settings import not_a_mapping

REPORT = "FXHLO_STARTUP_REPORT"
"""Environment variable with the report's path: set by the front end, inherited by the engine."""

FAILED = "failed"
"""What the marker of an engine holds that an error has ended."""
LONGEST = 400
"""Maximum length, in characters, of a library's message: vLLM's about an unknown architecture lists all 400 known ones."""


_ended_running = False
"""Whether vLLM has ended engines all of which ran until then."""


def install() -> None:
    """Replaces the traceback of an error that ends this process. Called only in the process of vLLM's command line."""
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


def vllm_ends_engines(statuses: Iterable[int | None]) -> None:
    """In the front end, when vLLM begins to end its engines, for the first time. statuses: those with which engines have ended already."""
    global _ended_running
    _ended_running = not any(statuses)


def leave(problem: FxhloError) -> None:
    """In the engine: writes the error for the front end, if there is one."""
    path = os.environ.get(REPORT)
    if path:
        Path(path).write_text(str(problem))


def engine_begins() -> None:
    """In the engine: creates the marker for the front end, if there is one."""
    if REPORT in os.environ:
        _mark().touch()


def engine_ends(problem: BaseException | None) -> None:
    """In the engine, at shutdown: removes the marker unless an error other than a request to end ended it, which it then says."""
    if REPORT not in os.environ:
        return
    if problem is None or isinstance(problem, SystemExit):
        _mark().unlink(missing_ok=True)
    else:
        _mark().write_text(FAILED)


def _mark() -> Path:
    """The marker of an engine that runs in this process."""
    return Path(os.environ[REPORT]).with_suffix(f".{os.getpid()}.running")


def _marks() -> list[Path]:
    """The markers of all engines of the front end."""
    report = Path(os.environ[REPORT])
    return list(report.parent.glob(f"{report.stem}.*.running"))


def _end(front: int) -> None:
    """At the front end's exit: sets exit status 1 where an engine did not end in order. Forked processes are left alone."""
    if os.getpid() == front and (marks := _marks()):
        failed = any(mark.read_text() == FAILED for mark in marks)
        for mark in marks:
            mark.unlink(missing_ok=True)
        if not failed and (_ended_running or asked_to_end()):
            return
        report = Path(os.environ[REPORT])
        if report.is_file():  # of an engine that failed while it served
            print(f"\nvLLM has ended.\n{report.read_text()}", file=sys.stderr)
            report.unlink(missing_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def asked_to_end() -> bool:
    """Whether a signal has asked vLLM's front end for several servers, or for none (`run_multi_api_server`, `run_headless`), to end.

    Their handler notes it in a variable of its own. The workers of another host have no manager of vLLM's that `vllm_ends_engines` hears of.
    """
    handler = signal.getsignal(signal.SIGTERM)
    handler = getattr(handler, "before", handler)  # what interrupts.py has put around it
    names = getattr(getattr(handler, "__code__", None), "co_freevars", ())
    cells = dict(zip(names, getattr(handler, "__closure__", None) or (), strict=False))
    return "shutdown_requested" in cells and cells["shutdown_requested"].cell_contents is True


def explanation(problem: BaseException) -> str | None:
    """The text to print for an error that ends the front end; None where there is no explanation."""
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
        if wrong := not_a_mapping(problem):
            return str(wrong)
        said = told(problem)
        if "Failed to import Ray" in said:
            return str(ray_for(_options(problem)))
        return f"{said}\n  next: check the model's path, its config.json and the command's options"
    return None


def _in_config(traceback: TracebackType | None) -> bool:
    """Whether the error was raised while vLLM made its config from the arguments and the model's config.json."""
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename.endswith("vllm/engine/arg_utils.py"):
            return True
        traceback = traceback.tb_next
    return False


def _options(problem: BaseException) -> Iterator[Mapping[str, object]]:
    """The options, by vLLM's names, that pydantic checked."""
    for one in getattr(problem, "errors", list)():
        yield getattr(one.get("input"), "kwargs", None) or {}


def told(problem: BaseException) -> str:
    """The message of pydantic, transformers or huggingface_hub, without wrapping, truncated to LONGEST characters."""
    lines = [line.strip() for line in str(problem).splitlines()]
    if type(problem).__name__ == "ValidationError":  # pydantic's: the first line counts errors, the last is a link
        lines = [line for line in lines[1:] if not line.startswith("For further information")]
        inner = [one.get("ctx", {}).get("error") for one in getattr(problem, "errors", list)()]
        lines += [condition for one in inner if isinstance(one, Exception) and (condition := condition_of(one))]
    elif not lines:
        lines = [condition_of(problem) or type(problem).__name__]
    told = "\n".join(line.split(" [type=")[0].removeprefix("Value error, ") for line in lines if line)
    return told if len(told) <= LONGEST else f"{told[:LONGEST]}..."
