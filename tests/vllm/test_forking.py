"""How vLLM's command starts its engine: as a fork of itself, which has neither its signals nor its socket."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fxhlo.runtime.vllm import forking

FORK = """
import os, signal, socket, sys
from fxhlo.runtime.vllm import forking
loop, wakes = socket.socketpair()  # as an event loop has them
loop.setblocking(False), wakes.setblocking(False)
signal.set_wakeup_fd(wakes.fileno())
server, connected = socket.socket(), socket.socket()
server.bind(("127.0.0.1", 0))
server.listen()
port = server.getsockname()[1]
connected.connect(("127.0.0.1", port))
forking.ready_for_forks()
forking.ready_for_forks()
asks, answers = socket.socketpair()
if not os.fork():
    signal.signal(signal.SIGTERM, lambda *_: None)
    os.kill(os.getpid(), signal.SIGTERM)
    own = socket.socket()
    own.bind(("127.0.0.1", 0))
    forking.leave_front()
    connected.getpeername()
    assert own.getsockname()[1]
    answers.send(b"x")
    answers.recv(1)
    server.close()  # of a descriptor that is another file's by now
    os._exit(0)
asks.recv(1)
server.close()
free = socket.socket()
free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
free.bind(("127.0.0.1", port))
free.listen()
try:
    print("woken", loop.recv(1))
except BlockingIOError:
    print("not woken")
asks.send(b"x")
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_fork_has_neither_the_signals_nor_the_sockets_of_its_parent() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", FORK], capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["not woken", "0"], done.stderr[-3000:]


@pytest.mark.parametrize(
    ("noted", "asked", "method"),
    [(True, None, "fork"), (True, "spawn", "spawn"), (True, "fork", "fork"), (False, None, "spawn")],
    ids=["nobody asks", "the user spawns", "the user forks", "nobody looked before vLLM"],
)
def test_what_the_user_asked_for_is_kept(
    noted: bool, asked: str | None, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forking, "_state", forking._State())
    monkeypatch.delenv(forking.METHOD, raising=False)
    if asked is not None:
        monkeypatch.setenv(forking.METHOD, asked)
    if noted:
        forking.note()
    monkeypatch.setenv(forking.METHOD, asked or "spawn")  # as vLLM's command line does
    forking.fork()
    assert os.environ[forking.METHOD] == method
