"""Peers: the workers of one engine on several hosts watch each other, so that none waits for one that is gone.

Comes in: a connection to the first host's worker, or on that one a connection to each other. Goes out: one call, of `lost` with what
happened, or of `left` where the first host was asked to end. Guaranteed: a process that ends is noticed at once, by its closed connection;
a host that says nothing, as one without power does, after QUIET seconds.

A computation over hosts waits in the device's collectives, which know nothing of a peer's end or wait for minutes.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping

BEAT = 2.0
"""Seconds between two signs of life."""
QUIET = 20.0
"""Seconds without one after which a host counts as lost. Python code that holds the interpreter's lock delays them."""
PARTING = 3.0
"""Seconds that the first host waits at its end for the others to hear of it."""
ALIVE = b"\n"


class Peers:
    """names: of the hosts at the other ends, by connection. first: whether this is the first host, which tells all others what it learns.

    lost(what happened), left(): called once, from a thread of their own.
    """

    def __init__(
        self,
        names: Mapping[socket.socket, str],
        *,
        first: bool,
        lost: Callable[[str], None],
        left: Callable[[], None],
    ) -> None:
        self._names = dict(names)
        self._first = first
        self._lost, self._left = lost, left
        self._unread = dict.fromkeys(names, b"")
        self._heard = dict.fromkeys(names, time.monotonic())
        self._ending = threading.Event()
        self._lock = threading.Lock()
        for one in names:
            one.settimeout(BEAT)
        threading.Thread(target=self._watch, name="fxhlo-peers", daemon=True).start()

    def fail(self, what: str) -> None:
        """Tells the others that this host's worker ends, and why. Only the first of `fail` and `leave` counts."""
        self._end({"lost": what})

    def leave(self) -> None:
        """Tells the others that this host's worker was asked to end, and lets them do the same."""
        self._end({"left": True})
        if self._first:
            deadline = time.monotonic() + PARTING
            for one in self._names:
                with contextlib.suppress(OSError):
                    one.settimeout(max(0.01, deadline - time.monotonic()))
                    while one.recv(4096):
                        pass

    def _end(self, message: dict[str, object]) -> None:
        if not self._ending.is_set():
            self._ending.set()
            self._send(json.dumps(message).encode() + b"\n")

    def _send(self, data: bytes) -> None:
        """To all; that a connection is closed, reading shows."""
        with self._lock:
            for one in self._names:
                with contextlib.suppress(OSError):
                    one.sendall(data)

    def _watch(self) -> None:
        ready = selectors.DefaultSelector()
        for one in self._names:
            ready.register(one, selectors.EVENT_READ)
        while not self._ending.is_set():
            for key, _ in ready.select(BEAT):
                self._read(key.fileobj)  # type: ignore[arg-type]  # a socket is what was registered
            for one, heard in self._heard.items():
                if time.monotonic() - heard > QUIET:
                    self._gone(f"nothing was heard of {self._names[one]} for {QUIET:.0f} s")
            self._send(ALIVE)

    def _read(self, one: socket.socket) -> None:
        try:
            data = one.recv(4096)
        except OSError:
            data = b""
        if not data:
            self._gone(f"the worker on {self._names[one]} has ended, or was killed")
            return
        self._heard[one] = time.monotonic()
        *lines, self._unread[one] = (self._unread[one] + data).split(b"\n")
        for line in filter(None, lines):
            self._told(json.loads(line), self._names[one])

    def _told(self, message: Mapping[str, object], name: str) -> None:
        if "lost" in message:
            self._gone(str(message["lost"]))
        elif self._first:
            self._gone(f"{name} was asked to end")
        elif not self._ending.is_set():
            self._ending.set()
            self._left()

    def _gone(self, what: str) -> None:
        if not self._ending.is_set():
            self._end({"lost": what})
            self._lost(what)
