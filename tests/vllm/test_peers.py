"""Workers on several hosts watch each other: one that is lost ends all, one that is asked to end lets the others do the same."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from fxhlo.runtime.vllm import peers
from fxhlo.runtime.vllm.peers import Peers

WAIT = 10.0


class Host:
    """One end: what it was told, in order."""

    def __init__(self, connections: dict[socket.socket, str], *, first: bool) -> None:
        self.told: list[str] = []
        self._once = threading.Event()
        self.peers = Peers(connections, first=first, lost=self._note, left=lambda: self._note("left"))

    def _note(self, what: str) -> None:
        self.told.append(what)
        self._once.set()

    def wait(self) -> list[str]:
        assert self._once.wait(WAIT), "nothing was told"
        return self.told


@pytest.fixture
def sockets() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    pairs = [socket.socketpair() for _ in range(2)]
    yield pairs
    for pair in pairs:
        for one in pair:
            one.close()


Pairs = list[tuple[socket.socket, socket.socket]]


@pytest.fixture
def hosts(sockets: Pairs, monkeypatch: pytest.MonkeyPatch) -> list[Host]:
    """The first host, and two others, as they are connected."""
    monkeypatch.setattr(peers, "BEAT", 0.05)
    first = Host({sockets[0][0]: "host 1", sockets[1][0]: "host 2"}, first=True)
    return [first, Host({sockets[0][1]: "host 0"}, first=False), Host({sockets[1][1]: "host 0"}, first=False)]


def test_a_host_that_is_killed_is_named_on_all(hosts: list[Host], sockets: Pairs) -> None:
    sockets[0][1].shutdown(socket.SHUT_RDWR)  # as the kernel does for a process that is killed
    assert hosts[0].wait() == ["the worker on host 1 has ended, or was killed"]
    assert hosts[2].wait() == ["the worker on host 1 has ended, or was killed"]


def test_a_failure_is_told_with_its_reason(hosts: list[Host]) -> None:
    hosts[1].peers.fail("host 1: the weight files lack a tensor\n  next: check")
    for host in (hosts[0], hosts[2]):
        assert host.wait() == ["host 1: the weight files lack a tensor\n  next: check"]
    assert not hosts[1].told


def test_the_first_host_ends_all_in_order(hosts: list[Host], sockets: Pairs) -> None:
    parting = threading.Thread(target=hosts[0].peers.leave)
    parting.start()
    assert hosts[1].wait() == ["left"]
    assert hosts[2].wait() == ["left"]
    for pair in sockets:
        pair[1].shutdown(socket.SHUT_RDWR)
    parting.join(WAIT)
    assert not parting.is_alive()
    assert not hosts[0].told


def test_another_host_that_is_asked_to_end_ends_the_engine(hosts: list[Host]) -> None:
    hosts[2].peers.leave()
    assert hosts[0].wait() == ["host 2 was asked to end"]
    assert hosts[1].wait() == ["host 2 was asked to end"]


def test_a_host_that_says_nothing_is_lost(sockets: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection stays open: a host without power closes nothing."""
    monkeypatch.setattr(peers, "BEAT", 0.05)
    monkeypatch.setattr(peers, "QUIET", 0.3)
    first = Host({sockets[0][0]: "host 1"}, first=True)
    assert first.wait() == ["nothing was heard of host 1 for 0 s"]


def test_hosts_that_live_are_left_alone(hosts: list[Host], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "QUIET", 0.4)
    time.sleep(0.8)
    assert not any(host.told for host in hosts)
