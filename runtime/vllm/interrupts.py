"""Makes signals end their process at once: the engine, and the front end while it waits for the engine.

The engine: the kernel may deliver a signal to any thread of a process, but Python runs its handler in the main thread alone. If
that waits in a lock, as in vLLM's idle engine, a signal that another thread (XLA's, OpenMP's) received does not wake it: vLLM
then waits 5 s and kills the engine. While an engine starts, vLLM's own handler only sets a flag.

The front end: vLLM swallows the KeyboardInterrupt of Ctrl-C, and the one that its command makes of SIGTERM, while it waits for an engine
(`zmq_socket_ctx`), or asyncio delays it until the wait is over. SystemExit propagates, and vLLM then sends the engine SIGTERM. Tried with vLLM 0.32.0.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGINT)
POKE = signal.SIGURG
"""Signal that wakes the main thread; otherwise unused, and ignored by default."""
POKES = (0.0, 0.05, 0.2, 1.0)
"""Seconds after a signal at which to wake the main thread: at the first, it may not wait yet."""
PATIENCE = 1.0
"""Seconds that a start has to clean up before the process is ended."""

_starting = threading.Event()
_installed = False


def install() -> None:
    """Starts the thread that wakes the main thread; once in a process, from its main thread.

    No-op where another library, such as asyncio, has set a wakeup fd already.
    """
    global _installed
    if _installed or threading.current_thread() is not threading.main_thread():
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    if before != -1:
        signal.set_wakeup_fd(before)
        return
    signal.signal(POKE, _nothing)
    main = threading.main_thread().ident
    assert main is not None
    threading.Thread(target=_wake, args=(reader, writer, main), name="fxhlo-signals", daemon=True).start()
    _installed = True


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Makes SIGTERM raise SystemExit while it is entered, and end the process after PATIENCE seconds. No-op without `install`."""
    if not _installed:
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    _starting.set()
    try:
        yield
    finally:
        _starting.clear()
        signal.signal(signal.SIGTERM, before)


def end_waiting_fronts() -> None:
    """Ctrl-C and SIGTERM end a front end, by SystemExit with status 130 and 143, while it waits for its engine to start. Otherwise the
    handler that was there before decides. Called where a config is made; does nothing outside the main thread, or twice, and where
    the signal ends the process by itself."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in ENDING:
        before = signal.getsignal(number)
        if callable(before) and not isinstance(before, _EndingWait):
            signal.signal(number, _EndingWait(before))


@dataclass(frozen=True)
class _EndingWait:
    """Handler of a signal that ends a wait for an engine, and otherwise calls the one that was there `before`."""

    before: Callable[[int, FrameType | None], object]

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if _waits_for_engine(frame):
            _end(number, frame)
        self.before(number, frame)


def _waits_for_engine(frame: FrameType | None) -> bool:
    """Whether the main thread is inside the constructor of vLLM's client of an engine process."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__init__" and code.co_filename.endswith("vllm/v1/engine/core_client.py"):
            return True
        frame = frame.f_back
    return False


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _nothing(number: int, frame: FrameType | None) -> None:
    """Empty signal handler: running one interrupts the wait for a lock."""


def _wake(reader: socket.socket, writer: socket.socket, main: int) -> None:
    """Reads the numbers of signals as Python's C handler writes them. `writer` is kept open."""
    while numbers := reader.recv(16):
        ending = [number for number in numbers if number in ENDING]
        if not ending:
            continue
        was_starting = signal.SIGTERM in ending and _starting.is_set()
        began = time.monotonic()
        for seconds in POKES:
            time.sleep(max(0.0, began + seconds - time.monotonic()))
            with contextlib.suppress(OSError):
                signal.pthread_kill(main, POKE)
        if was_starting:
            time.sleep(max(0.0, began + PATIENCE - time.monotonic()))
            os._exit(128 + signal.SIGTERM)
