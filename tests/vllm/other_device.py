"""A second device for an engine: a PJRT client of its own, under a platform and a target that nothing in fxhlo knows.

Its arrays are no other client's, and what is put on it is copied, as on an accelerator; the family has no native kernels.
"""

from __future__ import annotations

import pytest
from jax._src import xla_bridge

from fxhlo.runtime.core import pjrt, targets
from fxhlo.runtime.core.targets import Specification

NAME = "far-1"


def add_device(monkeypatch: pytest.MonkeyPatch, memory: int | None = 4 << 30, count: int = 1) -> str:
    """Makes `jax.devices("far")` a device, or several; returns the name of its target, which has `memory` bytes."""
    pjrt.device("cpu")  # a client made here is not made anew
    monkeypatch.setitem(xla_bridge._backends, "far", xla_bridge.xla_client.make_cpu_client(num_devices=count))
    monkeypatch.setitem(targets._known, NAME, Specification("far", memory=memory))
    for remembers in (xla_bridge.get_backend, xla_bridge.local_devices):
        remembers.cache_clear()
    pjrt.found._device.cache_clear()
    return NAME
