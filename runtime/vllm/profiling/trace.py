"""TraceFile: events in Chrome's trace format, written while they come.

Comes in: spans with their begin and end. Goes out: a file that https://ui.perfetto.dev and chrome://tracing open. Guaranteed: what cannot be written is an
error when the file is made; a disk that fills up later ends the profile, not the serving. A file of a process that was killed can be
read up to its last whole line: the format allows an array without its end.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from ...core.errors import FxhloError

PARTS = ("update", "inputs", "transfer", "dispatch", "wait", "read back")
"""Parts of a step on the host, as their spans are named (recorder.py says what they are)."""
ROOM = 16 * 2**20
"""Bytes that must be free when a profile begins; a step takes about 1,000."""
HELD = 256
"""Events in memory before they are written."""
DEVICE = 1
"""Track of the device; the host's threads come after it."""


class ProfileError(FxhloError):
    """A profile cannot be begun or written."""


class TraceFile:
    """One file. Spans may come from any thread."""

    def __init__(self, folder: Path, name: str) -> None:
        """Makes the folder and the file. Raises ProfileError where that fails, or where the disk is nearly full."""
        self.path = folder / f"{name}.trace.json"
        self._lock = threading.Lock()
        self._tracks: dict[int, int] = {}
        self._held: list[str] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            state = os.statvfs(folder)
            if state.f_bavail * state.f_frsize < ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._file = self.path.open("w")
            self._file.write("[\n")
            self._event({"name": "process_name", "ph": "M", "args": {"name": f"fxhlo, process {os.getpid()}"}})
            self._event({"name": "thread_name", "ph": "M", "tid": DEVICE, "args": {"name": "device"}})
            self._event(
                {
                    "name": "begun",
                    "ph": "i",
                    "s": "g",
                    "ts": _us(time.perf_counter_ns()),
                    "tid": DEVICE,
                    "args": {"seconds since 1970": time.time()},
                }
            )
            self._write()
        except OSError as problem:
            raise ProfileError(
                f"a profile cannot be written: {problem.strerror}",
                where=problem.filename or folder,
                next_step="name another folder, one that this user may write and whose disk has room",
            ) from problem

    def span(self, name: str, begin: int, end: int, *, device: bool = False, **facts: Any) -> None:
        """Adds a span. begin, end: of time.perf_counter_ns. device: of the device, else of the calling thread."""
        with self._lock:
            track = DEVICE if device else self._track()
            self._event(
                {
                    "name": name,
                    "ph": "X",
                    "ts": _us(begin),
                    "dur": round((end - begin) / 1000, 3),
                    "tid": track,
                    "args": facts,
                }
            )
            if len(self._held) >= HELD:
                self._write()

    def close(self) -> None:
        """Ends the file. Raises OSError where what is left cannot be written."""
        with self._lock, self._file:
            self._write()
            ended = {
                "name": "ended",
                "ph": "i",
                "s": "g",
                "ts": _us(time.perf_counter_ns()),
                "pid": os.getpid(),
                "tid": DEVICE,
            }
            self._file.write(f"{json.dumps(ended)}\n]\n")

    def _track(self) -> int:
        thread = threading.get_ident()
        if thread not in self._tracks:
            self._tracks[thread] = DEVICE + 1 + len(self._tracks)
            name = "host" if len(self._tracks) == 1 else f"host, {threading.current_thread().name}"
            self._event({"name": "thread_name", "ph": "M", "tid": self._tracks[thread], "args": {"name": name}})
        return self._tracks[thread]

    def _event(self, event: dict[str, object]) -> None:
        self._held.append(json.dumps({"pid": os.getpid(), **event}))

    def _write(self) -> None:
        held, self._held = self._held, []
        self._file.writelines(f"{line},\n" for line in held)
        self._file.flush()


def _us(nanoseconds: int) -> float:
    return round(nanoseconds / 1000, 3)
