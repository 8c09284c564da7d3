"""Hosts: one engine on several of them, a worker on each, all devices in one mesh.

Comes in: vLLM's config (`--nnodes`, `--node-rank`, `--master-addr`, `--master-port`) and the number of this host. Goes out: joined processes, that
watch each other. Guaranteed: every host runs the same versions, model and options as the first, or none starts; where one is lost
or fails, all end with one error.

vLLM schedules on the first host and sends each step to every worker, so that all start the same programs in the same order; the first
host's worker answers.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..core import processes
from ..core.errors import ExecutionError, FxhloError
from ..core.targets import Target
from . import compat, front
from .peers import Peers
from .steps.identity import Json, differences

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = compat.init_logger("vllm.fxhlo.hosts")

ARRIVAL = 300
"""Seconds that a host waits for the others to come."""
PATIENCE = 5.0
"""Seconds in which a worker that was asked to end does so in order."""


VERDICT = 3.0
"""Seconds in which a host's end is known here, by its closed connection or by the first host."""


class HostError(FxhloError):
    """Another host was lost, has failed, or is not like this one."""


class Hosts:
    """number: of this host, of `count`. Made by `join`, in the order of its methods."""

    def __init__(self, number: int, count: int, address: str, store: Any) -> None:
        self.number = number
        self.count = count
        self._address = address
        self._store = store
        self._peers: Peers | None = None

    @classmethod
    def join(cls, config: VllmConfig, number: int) -> Hosts:
        """Meets the other hosts at the first one's address, and begins to watch them. Raises HostError where some do not come."""
        parallel = config.parallel_config
        count, address = parallel.nnodes, parallel.master_addr
        logger.info("host %d of %d: meets the others at %s:%d", number, count, address, parallel.master_port)
        try:
            store = compat.start_hosts(config, number, ARRIVAL)
        except (RuntimeError, ValueError) as problem:
            raise HostError(
                f"host {number} of {count} has not met the others at {address}:{parallel.master_port} in {ARRIVAL} s: {problem}",
                next_step="start vllm serve on every host, --headless on all but the first, with the same --nnodes, --master-addr and "
                "--master-port, and the host's own --node-rank",
            ) from problem
        hosts = cls(number, count, address, store)
        hosts._peers = Peers(hosts._connected(), first=not number, lost=hosts._lost, left=_ask_to_end)
        return hosts

    def start(self, target: Target) -> None:
        """Joins the processes' devices. Before the first device is used."""
        port = self._told("devices", lambda: _free_port(self._address))
        processes.join(f"{self._address}:{port}", self.count, self.number, target.family)

    def compare(self, identity: Json) -> None:
        """Raises HostError where another host's engine differs from the first one's. identity: of this host's (steps/identity.py)."""
        found = differences(self._told("identity", lambda: identity), identity, place="the first host's engine")
        if found:
            raise HostError(
                f"host {self.number} differs from the first one: {'; '.join(found)}",
                next_step="give every host the same command, but for --node-rank and --headless, the same model and the same versions",
            )

    def fail(self, problem: BaseException | str) -> None:
        """Ends the other hosts with this one, which says the same. A computation over hosts fails, too, where another host is lost: that
        is waited for, and ends this process with what is wrong."""
        if isinstance(problem, ExecutionError):
            time.sleep(VERDICT)
        if self._peers is not None:
            self._peers.fail(f"host {self.number}: {problem}")

    def leave(self) -> None:
        """Ends the other hosts in order."""
        if self._peers is not None:
            self._peers.leave()

    def _told(self, name: str, make: Callable[[], Any]) -> Any:
        """What the first host's `make` gave."""
        return compat.shared(self._store, f"fxhlo/{name}", make if self.number == 0 else None)

    def _connected(self) -> dict[socket.socket, str]:
        """A connection to the first host, or on that one to each other, with the names of the hosts there."""
        if self.number:
            port = self._told("peers", lambda: 0)
            made = socket.create_connection((self._address, port), timeout=ARRIVAL)
            made.sendall(self.number.to_bytes(4, "big"))
            return {made: f"host 0 ({self._address})"}
        found: dict[socket.socket, str] = {}
        with socket.create_server((self._address, 0), family=_family(self._address), backlog=self.count) as server:
            self._told("peers", lambda: server.getsockname()[1])
            server.settimeout(ARRIVAL)
            while len(found) < self.count - 1:
                one, (address, *_) = server.accept()
                one.settimeout(ARRIVAL)
                found[one] = f"host {int.from_bytes(one.recv(4), 'big')} ({address})"
        return found

    def _lost(self, what: str) -> None:
        """Ends this process: its main thread may wait in a collective for good."""
        problem = HostError(
            f"the engine runs on {self.count} hosts, and one is lost: {what}",
            next_step="see that host's log, and start all hosts again",
        )
        logger.error("%s", problem)
        front.leave(problem)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _ask_to_end() -> None:
    """The first host was asked to end, and so is this process."""
    logger.info("the first host has ended, and this one ends too")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os._exit(0)


def _family(address: str) -> socket.AddressFamily:
    return socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][0]


def _free_port(address: str) -> int:
    with socket.create_server((address, 0), family=_family(address)) as probe:
        return int(probe.getsockname()[1])
