"""Beginning and end of an engine: what it says while it starts, that it can be interrupted, and that it ends at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_robustness import CONFIG, SIZES

SCRIPT = """
import sys, time
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    llm = LLM(model=sys.argv[1], **{sizes!r})
    llm.generate([{{"prompt_token_ids": [5, 6, 7]}}], SamplingParams(max_tokens=4, detokenize=False), use_tqdm=False)
    print("ANSWERED", time.time(), flush=True)
"""


class Script:
    """A user's script that answers one prompt, on a cache of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text(json.dumps(CONFIG))
        (folder / "script.py").write_text(SCRIPT.format(sizes=SIZES))

    def start(self) -> subprocess.Popen[str]:
        environment = {
            **os.environ, "VLLM_LOGGING_LEVEL": "INFO", "HF_HUB_OFFLINE": "1", "FXHLO_CACHE_DIR": str(self.folder / "cache"),
            "FXHLO_NATIVE": "0",  # a cache of its own would make each of these tests build the kernels
        }  # fmt: skip
        return subprocess.Popen(
            [sys.executable, "-P", "script.py", "model"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=self.folder, env=environment, start_new_session=True,
        )  # fmt: skip

    def run(self) -> str:
        """What a whole run says."""
        process = self.start()
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said[-5000:]
        return said


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path)


def lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    yield from process.stdout


@pytest.mark.parametrize("more", [1, pytest.param(6, marks=pytest.mark.conformance)])
def test_a_script_says_what_it_does_and_ends_at_once(script: Script, more: int) -> None:
    """Several runs: a signal that another thread than Python's main one took was lost in three of four, and the engine, which
    went on sleeping, was killed after 5 s."""
    said = script.run()
    for stage in ("serves with vLLM", "target cpu", "capturing the model", "running the passes", "(1 of "):
        assert stage in said, said[-5000:]
    count = said.count("compiled tokens=")
    assert f"({count} of {count})" in said
    for again in (said, *(script.run() for _ in range(more))):
        assert "ANSWERED" in again
        assert "trigger received signal=SIGTERM" in again, again[-3000:]
        assert "exiting busy loop" in again


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_start_that_is_ended_leaves_nothing(script: Script, number: signal.Signals) -> None:
    """All processes of the group are asked to end, as Ctrl-C does: none is left behind, and nothing half made is in the cache."""
    process = script.start()
    said = []
    for line in lines(process):
        said.append(line)
        if "capturing the model" in line:
            break
    os.killpg(process.pid, number)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == (130 if number is signal.SIGINT else -number)
    assert "Traceback" not in rest or number is signal.SIGTERM, rest[-3000:]
    assert "force killing" not in rest, rest[-3000:]
    assert "ANSWERED" not in rest
    deadline = time.monotonic() + 10
    while (left := group(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, "processes are left behind"
    entries = script.folder / "cache" / "entries"
    assert not [path for path in entries.glob("*") if not path.name.startswith(".")]


def group(leader: int) -> list[int]:
    """Processes of the group that still run."""
    import psutil

    found = []
    for process in psutil.process_iter(["pid", "status"]):
        try:
            if os.getpgid(process.pid) == leader and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except ProcessLookupError:
            continue
    return found
