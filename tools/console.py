"""Terminal output of commands: results on stdout, everything else on stderr, one clear message per error.

`run(app, arguments)` runs every command: it keeps libraries' output off stdout, shows an FxhloError as what, where and
what next, and ends quietly when the reader of a pipe has closed it. Exit codes: EXIT_CODES.
FXHLO_TRACEBACK=1 shows where an error was raised.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from time import perf_counter
from typing import TextIO

import typer
from rich.console import Console
from rich.markup import escape

from ..runtime.core.errors import FxhloError

EXIT_CODES = """
\b
Exit codes:
  0    done
  1    the model, or a file, cannot be read, lowered, compiled or written
  2    the command is wrong: an option, or the name of a target, pass, dimension, kernel or entry that does not exist
  130  interrupted
"""
INTERRUPTED = 130
BEGAN = perf_counter()
"""When this command began: this module is the first that a command imports."""
GRACE = 1.0
"""Seconds that Python has to handle an interrupt before the process is ended within a compiler's call."""
REPORT = "this is a bug of fxhlo: FXHLO_TRACEBACK=1 shows where it was raised"

stderr = Console(stderr=True, highlight=False, soft_wrap=True)
if not stderr.is_terminal:
    stderr.width = 132  # for a file or a pipe: rich's default is 80
_stdout: TextIO | None = None


class UsageError(FxhloError):
    """The command line is wrong: an option's value, or the name of something that does not exist. Exit code 2."""


def stdout() -> TextIO:
    """The stream for results: the process's own stdout, also while `run` keeps libraries from writing to it."""
    return _stdout or sys.stdout


def say(line: str) -> None:
    """A line of progress; `line` is plain text."""
    stderr.print(escape(line))


@contextmanager
def stage(title: str, times: dict[str, float] | None = None, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Shows that `title` is running, then how long it took; yields a function that adds its outcome to the line."""
    came_out: list[str] = []
    start = perf_counter()
    if stderr.is_terminal and not quiet:
        with stderr.status(f"{escape(title)} ..."):
            yield came_out.append
    else:
        yield came_out.append
    seconds = perf_counter() - start
    if times is not None:
        times[title] = times.get(title, 0.0) + seconds  # a stage runs once for each bucket
    if not quiet:
        tail = f"   {', '.join(came_out)}" if came_out else ""
        stderr.print(f"[green]{escape(title):<12}[/green] {seconds:7.2f} s[dim]{escape(tail)}[/dim]")


def show_error(problem: FxhloError) -> None:
    """Prints the error as Python raises it: what, where, what next."""
    stderr.print(f"[bold red]error:[/bold red] {escape(problem.message)}")
    if problem.where:
        stderr.print(f"  [dim]at:[/dim] {escape(str(problem.where))}")
    if problem.next_step:
        stderr.print(f"  [dim]next:[/dim] {escape(problem.next_step)}")


def put(text: str) -> None:
    """Writes a result to stdout. Where its reader has gone (`lower-model MODEL | head`) the process ends well."""
    try:
        stdout().write(text if text.endswith("\n") else text + "\n")
        stdout().flush()
    except OSError as problem:
        _close_stdout()
        if isinstance(problem, BrokenPipeError):
            raise SystemExit(0) from None
        raise FxhloError(f"the result cannot be written to stdout: {problem.strerror}") from problem


def _close_stdout() -> None:
    """Closes stdout so that flushing its buffer does not fail again at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stdout().fileno())
    os.close(null)


def run(app: typer.Typer, arguments: Sequence[str], name: str) -> int:
    """Runs a typer app; returns the exit code."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # those of libraries; python -W default shows them
    with _clean_stdout(), _ending_at_interrupts():
        try:
            app(args=list(arguments), prog_name=name, standalone_mode=True)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
            if code == INTERRUPTED:  # typer's code, without a message
                say("interrupted")
            return code
        except KeyboardInterrupt:
            say("interrupted")
            return INTERRUPTED
        except FxhloError as problem:
            _traceback()
            show_error(problem)
            return 2 if isinstance(problem, UsageError) else 1
        except MemoryError:
            _traceback()
            show_error(
                FxhloError("there is not enough memory on this machine", next_step="take a smaller model or bucket")
            )
            return 1
        except BrokenPipeError:
            _close_stdout()
            return 0
        except OSError as problem:
            _traceback()
            show_error(FxhloError(f"{problem.strerror or first_line(problem)}", where=problem.filename))
            return 1
        except Exception as problem:
            _traceback()
            show_error(FxhloError(f"{type(problem).__name__}: {first_line(problem)}", next_step=REPORT))
            return 1
    return 0


@contextmanager
def _ending_at_interrupts() -> Iterator[None]:
    """Makes Ctrl-C end the process even while a compiler runs, whose return Python's own handler waits for."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    over = threading.Event()

    def watch() -> None:
        if os.read(reading, 1) and not over.wait(GRACE):
            os.write(2, b"interrupted\n")
            os._exit(INTERRUPTED)

    threading.Thread(target=watch, name="fxhlo-interrupts", daemon=True).start()
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.close(writing)  # the thread reads end-of-file and returns


def first_line(problem: BaseException) -> str:
    """The first nonempty line of an error's text."""
    return next((line.strip() for line in str(problem).splitlines() if line.strip()), "(no message)")


def _traceback() -> None:
    if os.environ.get("FXHLO_TRACEBACK", "0") not in ("", "0"):
        traceback.print_exc()


@contextmanager
def _clean_stdout() -> Iterator[None]:
    """Redirects file descriptor 1 to stderr, except for `stdout()`: vLLM, torch and XLA print to stdout."""
    global _stdout
    sys.stdout.flush()
    own = os.dup(1)
    before = sys.stdout
    sys.stdout = _stdout = os.fdopen(own, "w", encoding="utf-8", errors="backslashreplace")  # typer prints --help there
    os.dup2(2, 1)
    try:
        yield
    finally:
        with suppress(OSError):  # its reader has closed it
            _stdout.flush()
        os.dup2(own, 1)
        sys.stdout, made, _stdout = before, _stdout, None
        with suppress(OSError):
            made.close()
