"""A signal that another thread than Python's main one takes still ends what the main thread waits for."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

WAITING = """
import contextlib, queue, signal, sys, threading, time
from fxhlo.runtime.vllm import interrupts

def end(number, frame):
    raise SystemExit(42)

for number in interrupts.ENDING:
    signal.signal(number, end)
if "install" in sys.argv:
    interrupts.install()
other = threading.Thread(target=time.sleep, args=(60,), daemon=True)
other.start()

def send():
    time.sleep(0.5)
    signal.pthread_kill(other.ident, {number})  # as the kernel may do with a signal to the process

threading.Thread(target=send, daemon=True).start()
with interrupts.ending_at_once() if "starting" in sys.argv else contextlib.nullcontext():
    if "deaf" in sys.argv:
        while True:
            with contextlib.suppress(SystemExit):
                time.sleep(60)
    queue.Queue().get()
"""


def end_of(*arguments: str, number: int = signal.SIGTERM, timeout: float = 30) -> int:
    script = WAITING.replace("{number}", str(int(number)))
    return subprocess.run([sys.executable, "-P", "-c", script, *arguments], timeout=timeout).returncode


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_main_thread_is_woken(number: signal.Signals) -> None:
    assert end_of("install", number=number) == 42


def test_python_alone_does_not_wake_it() -> None:
    """Which is why there is something to install."""
    with pytest.raises(subprocess.TimeoutExpired):
        end_of(timeout=5)


def test_a_start_ends_by_itself() -> None:
    assert end_of("install", "starting") == 128 + signal.SIGTERM


def test_a_start_that_does_not_listen_is_ended() -> None:
    assert end_of("install", "starting", "deaf") == 128 + signal.SIGTERM


FRONT = """
import signal, sys
from fxhlo.runtime.vllm import front, interrupts
number = signal.Signals[sys.argv[1]]
interrupts.end_waiting_fronts()
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

def command():  # as vLLM's command for several servers
    shutdown_requested = False

    def interrupt(*_):
        nonlocal shutdown_requested
        shutdown_requested = True
        raise KeyboardInterrupt("terminated")

    return interrupt

signal.signal(number, command())
interrupts.end_waiting_fronts()
once = signal.getsignal(number)
interrupts.end_waiting_fronts()
assert signal.getsignal(number) is once and not front.asked_to_end()
try:
    signal.raise_signal(number)
except KeyboardInterrupt:
    print("as before", front.asked_to_end())
waiting = compile("def __init__(): signal.raise_signal(number)", "/site/vllm/v1/engine/core_client.py", "exec")
exec(waiting)
__init__()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_front_that_waits_for_its_engine_is_ended_and_no_other(number: signal.Signals) -> None:
    done = subprocess.run([sys.executable, "-P", "-c", FRONT, number.name], capture_output=True, text=True, timeout=120)
    said = f"as before {number is signal.SIGTERM}\n"
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, said, "")
