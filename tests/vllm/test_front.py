"""The exit status of vLLM's front end, by what became of its engines: processes of vLLM's own manager."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import multiprocessing, os, signal, sys, threading, time, weakref
from fxhlo.runtime.vllm import compat, front
from types import SimpleNamespace
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.core_client import BackgroundResources
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.utils import CoreEngineProcManager

def engine(ready):
    signal.signal(signal.SIGTERM, lambda *_: None)  # as one in the middle of a step
    front.engine_begins()
    ready.set()
    time.sleep(60)

def failing(ready):
    front.engine_begins()
    front.engine_ends(ValueError("a step failed"))
    ready.set()
    time.sleep(60)

def front_end(how):
    front.install()
    compat.when_engines_end(front.vllm_ends_engines)
    context = multiprocessing.get_context("fork")
    ready = [context.Event(), context.Event()]
    targets = (engine, failing if how == "failed" else engine)
    manager = CoreEngineProcManager.__new__(CoreEngineProcManager)
    manager._request_shutdown_timeout = 0
    manager.processes = [context.Process(target=one, args=(event,)) for one, event in zip(targets, ready)]
    manager.manager_stopped, manager.failed_proc_name = threading.Event(), None
    manager._finalizer = weakref.finalize(manager, lambda: None)
    for process in manager.processes:
        process.start()
    for event in ready:
        event.wait()
    if how == "killed":
        manager.processes[1].kill()
        manager.monitor_engine_liveness()
    if how == "dying":  # it has said so, and vLLM is faster than its end
        try:
            BackgroundResources(ctx=None).validate_alive([SimpleNamespace(buffer=EngineCoreProc.ENGINE_CORE_DEAD)])
        except EngineDeadError:
            pass
    manager.shutdown(timeout=0)
    manager.shutdown(timeout=0)
    sys.exit(0)

if __name__ == "__main__":
    for how in sys.argv[1:]:
        if not (child := os.fork()):
            front_end(how)
        print(how, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_the_status_of_a_front_end(tmp_path: Path) -> None:
    """asked: vLLM kills two engines that run; killed: one of them was killed before; failed: one has ended by an error, and runs still;
    dying: one has told vLLM that an error ends it."""
    (tmp_path / "front_end.py").write_text(SCRIPT)
    environment = {**os.environ, "TMPDIR": str(tmp_path), "VLLM_PLUGINS": "fxhlo"}
    environment.pop("FXHLO_STARTUP_REPORT", None)
    command = [sys.executable, "-P", "front_end.py", "asked", "killed", "failed", "dying"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["asked 0", "killed 1", "failed 1", "dying 1"], done.stderr[-3000:]
    assert not list(tmp_path.glob("fxhlo-startup-*"))
