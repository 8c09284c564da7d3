"""A `vllm serve` process of our own: started, asked, and ended with everything that it started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil

TOKENS = ("--max-num-batched-tokens", "256", "--num-gpu-blocks-override", "512")
"""For the real model, each of whose programs takes seconds to compile: few of them, and for each server the same."""
START = 300.0
"""Seconds until a server must be ready, or have ended."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """with Server(folder, *options) as server: server.wait(); server.post(path, request)."""

    def __init__(self, model: Path | str, *options: str) -> None:
        port = [] if "--port" in options else ["--port", str(free_port())]
        host = [] if "--host" in options else ["--host", "127.0.0.1"]
        vllm = Path(sys.executable).with_name("vllm")
        self.command = [str(vllm), "serve", str(model), *options, *host, *port]
        self.url = f"http://127.0.0.1:{self.command[self.command.index('--port') + 1]}"

    def __enter__(self) -> Server:
        self._log = tempfile.TemporaryFile()  # a pipe that nobody reads would stop the server
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            self.command, stdout=self._log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def log(self) -> str:
        """What the server has written."""
        self._log.flush()
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    def wait(self) -> None:
        """Until it answers; fails with its output where it ends first."""
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self.log()[-6000:]
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return
            time.sleep(0.25)
        raise AssertionError(f"not ready after {START:.0f} s: {self.log()[-6000:]}")

    def engine(self) -> psutil.Process:
        """The process that the server's engine runs in."""
        (found,) = [
            one for one in psutil.Process(self._process.pid).children() if "EngineCore" in " ".join(one.cmdline())
        ]
        return found

    def terminate(self) -> None:
        """Asks it to end, as a container's manager does."""
        self._process.send_signal(signal.SIGTERM)

    def end(self) -> tuple[int | None, str]:
        """Waits until it ends by itself: its exit code (None where it does not) and what it has written."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(START)
        return self._process.poll(), self.log()

    def open(self, path: str, request: dict[str, Any]) -> Any:
        """The response, as it comes."""
        data = json.dumps(request).encode()
        made = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        return urllib.request.urlopen(made, timeout=120)

    def post(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        """The whole answer; raises HTTPError for one that is not 200."""
        with self.open(path, request) as response:
            return json.load(response)
