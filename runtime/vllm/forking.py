"""How the engine's process of `vllm serve` begins: as a fork of the front end, which has imported all that the engine needs.

vLLM's command line asks for `spawn` unless somebody has asked for something else, because some accelerators do not survive a fork (`cli_env_setup`);
as a library vLLM forks. A spawned process imports torch, vLLM and transformers once more. Ours has nothing that a fork would break: the device is
started in the engine, and a front end in which XLA has started spawns. Guaranteed: what a user asked for is kept; an engine takes neither
its front end's signals nor the socket that the front end listens at.

What of a fork Python 3.12 has of itself, and 3.11 not: asyncio's signals are the parent's (`asyncio.events.on_fork`). Tried with vLLM 0.32.0.
"""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import dataclass

METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
"""vLLM's variable: "fork" or "spawn"."""


@dataclass
class _State:
    """noted: whether `note` came before vLLM's command line. asked: METHOD by then. hooked: whether forks call `_forked`.

    servers: the descriptors that a fork has inherited of sockets at which its parent listens, each with its inode.
    """

    noted: bool = False
    asked: str | None = None
    hooked: bool = False
    servers: tuple[tuple[int, int], ...] = ()


_state = _State()


def note() -> None:
    """Notes what the user asks for; called at the end of torch's import, before vLLM's command line asks for something itself."""
    if not _state.noted:
        _state.noted, _state.asked = True, os.environ.get(METHOD)


def spawn() -> None:
    """Has vLLM spawn its engines."""
    os.environ[METHOD] = "spawn"


def fork() -> None:
    """Has vLLM fork its engines where nobody but its own command line asked it to spawn them."""
    if _state.noted and _state.asked is None:
        os.environ[METHOD] = "fork"


def ready_for_forks() -> None:
    """Has every fork of this process leave its signals to this process. Once in a process."""
    if not _state.hooked:
        _state.hooked = True
        os.register_at_fork(after_in_child=_forked)


def _forked() -> None:
    """In the fork, before it runs anything: a signal to it is no longer written to the event loop of its parent."""
    signal.set_wakeup_fd(-1)
    _state.servers = tuple(_servers())


def leave_front() -> None:
    """In an engine's process: lets go of the sockets at which its front end listens, so that their port is free where the front end is gone.

    Their descriptors stay, of /dev/null: objects of the front end's that this process has too may close them.
    """
    servers, _state.servers = _state.servers, ()
    for descriptor, inode in servers:
        if _inode(descriptor) == inode:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(null, descriptor, inheritable=False)
            os.close(null)


def _servers() -> list[tuple[int, int]]:
    """The descriptors of this process that are sockets with a name of their own and no peer, each with its inode."""
    found = []
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return []
    for descriptor in map(int, names):
        inode = _inode(descriptor)
        if inode is not None and _is_server(descriptor):
            found.append((descriptor, inode))
    return found


def _inode(descriptor: int) -> int | None:
    try:
        return os.fstat(descriptor).st_ino
    except OSError:
        return None


def _is_server(descriptor: int) -> bool:
    try:
        with socket.socket(fileno=os.dup(descriptor)) as one:
            if one.type != socket.SOCK_STREAM or one.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
                return False
            own = one.getsockname()
            if not (own if one.family == socket.AF_UNIX else own[1]):
                return False
            try:
                one.getpeername()
            except OSError:
                return True
            return False
    except OSError:
        return False
