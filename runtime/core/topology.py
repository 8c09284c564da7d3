"""The topologies of TPUs that libtpu compiles for without one: their devices, as the compiler knows them.

Comes in: a TPU target. Goes out: the topology's devices, the same ones each time. Guaranteed: no TPU is asked for; libtpu stays quiet.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

from .errors import UnsupportedError
from .explain import first_lines
from .plugins import has_tpu, settle
from .targets import Target

HOST = (2, 2, 1)
"""Chips of one host, along the axes of a topology."""

_lock = threading.Lock()


def devices(target: Target) -> Sequence[Any]:
    """The devices of a TPU's topology as libtpu's compiler knows them."""
    if target.topology_name is None:
        raise UnsupportedError(
            f"{target} is compiled on a machine that has one, not ahead of time", next_step="use compile"
        )
    with _lock:  # devices of two topologies of one name do not mix
        return _made(target.topology_name, target.family)


@cache
def _made(name: str, platform: str) -> Sequence[Any]:
    settle()
    if not has_tpu():  # what libtpu would ask a TPU host's metadata server, and its guard against two users of one TPU
        quiet = {
            "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v6e-4", "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3",
        }  # fmt: skip
        for key, value in quiet.items():
            os.environ.setdefault(key, value)
    if not os.environ.get("TPU_LIBRARY_PATH") and importlib.util.find_spec("libtpu") is None:
        raise UnsupportedError(
            "libtpu is not installed, and it alone compiles for TPUs", next_step="pip install 'libtpu==0.0.42.*'"
        )
    from jax.experimental import topologies

    sizes = [int(size) for size in name.partition(":")[2].split("x")]
    bounds = [min(size, most) for size, most in zip([*sizes, 1][:3], HOST, strict=True)]
    try:
        return topologies.get_topology_desc(platform=platform, topology_name=name, chips_per_host_bounds=bounds).devices
    except Exception as problem:
        raise UnsupportedError(
            f"libtpu gives no topology {name}: {first_lines(problem)}",
            next_step="take sizes that are even, or 1, as in 2x2 or 4x4; three of them for v4, v5p and 7x",
        ) from problem
