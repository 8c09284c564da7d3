"""One program over several hosts: a process on each, joined by jax's distributed runtime.

Comes in: the address where the first process listens. Goes out: jax's own state, from which a PJRT client learns of the others.
Guaranteed: no client was started before; a process that ends does not wait for the others; where the first one is lost, whoever watches it
has time to say so.
"""

from __future__ import annotations

import ctypes
import logging
import signal
import time

from .errors import UnsupportedError
from .explain import first_lines
from .plugins import has_started
from .versions import misfit

try:
    import jax
    from jax._src.distributed import global_state
    from jaxlib import _jax
except (ImportError, AttributeError) as problem:
    raise misfit("PJRT client", problem) from problem

ARRIVAL = 300
"""Seconds until all processes must have joined."""
HEARTBEAT = 100
"""Seconds after which jax's own service takes a process for lost: jax's default. runtime/vllm/peers.py knows long before."""
VERDICT = 5.0
"""Seconds that an abort leaves for whoever watches the other processes: it knows within that why this one aborts."""
PARTING = 5
"""Seconds that the first process waits for others at its end."""


def join(address: str, count: int, number: int, family: str) -> None:
    """Joins `count` processes into one system. address: host and port of the first one, which listens there; number: of this process.

    family: of the target; processes with CPU devices compute sums over devices by gloo. Raises UnsupportedError.
    """
    if has_started():
        raise UnsupportedError(
            "this process has used a device already, alone", next_step="start the engine in a new process"
        )
    if family == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    logging.getLogger("jax._src.distributed").setLevel(logging.WARNING)
    ctypes.CDLL(None).signal(signal.SIGABRT, _held)
    try:
        if number == 0:
            global_state.service = _jax.get_distributed_runtime_service(
                address, count, heartbeat_timeout=HEARTBEAT, shutdown_timeout=PARTING
            )
        global_state.client = _jax.get_distributed_runtime_client(
            address,
            number,
            init_timeout=ARRIVAL,
            use_compression=True,
            heartbeat_timeout=HEARTBEAT,
            shutdown_on_destruction=False,
            missed_heartbeat_callback=_unheard,
        )
        global_state.client.connect()
    except (RuntimeError, ValueError, TypeError) as problem:  # TypeError: a jaxlib whose client takes other options
        raise UnsupportedError(
            f"process {number} of {count} could not join the others at {address}: {first_lines(problem)}",
            next_step="start every host's process, with the same address, which all of them reach",
        ) from problem
    global_state.process_id, global_state.num_processes = number, count
    global_state.coordinator_address = address


def count() -> int:
    """Processes that were joined; 1 without `join`."""
    return global_state.num_processes if global_state.client is not None else 1


def number() -> int:
    """This process's number among them."""
    return global_state.process_id if global_state.client is not None else 0


def _unheard(problem: object) -> None:
    """jax would end the process, with a message of its own; whoever watches the others ends it with one that says what to do."""


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _held(number: int) -> None:
    """jaxlib cannot hand a lost service's error to `_unheard`, since Python knows no type for it, and aborts the process on the spot
    (std::bad_cast), before the watch has read that the first process is gone. A handler of Python's own would wait for the main thread."""
    time.sleep(VERDICT)
