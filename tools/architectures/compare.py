"""Compares architectures with transformers, by two processes: reference.py, without vLLM, and serve.py. Each is started when it is first asked, and
again after a model that kills it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from .outcome import Outcome

FOLDER = Path(__file__).resolve().parents[2] / "build" / "architectures"
LOG = "log.txt"
"""What the processes wrote, tracebacks among it; in the folder of the models."""
REFUSED_AS_A_WHOLE = {
    "Images, speech and encoder-decoders": "multimodal and encoder-decoder models are refused",
    "Drafts of speculative decoding": "`--speculative-config` is refused",
}
"""Parts of vLLM's registry whose keys are not examined one by one, and why; tests/vllm/test_refusals.py has the tests."""
PATIENCE = 300.0
"""Seconds for one architecture."""


class Worker:
    """A process of a module of this package that answers each line with a line. Ended with the `with` block."""

    def __init__(self, module: str, log: IO[str], environment: Mapping[str, str], *words: str) -> None:
        self._command = [sys.executable, "-P", "-m", f"{__package__}.{module}", *words]
        self._log = log
        self._environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1", **environment}
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def ask(self, line: str) -> str:
        """The answer, or "" where the process ended or was ended after PATIENCE."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=self._environment
            )  # fmt: skip
        given, answers = self._process.stdin, self._process.stdout
        assert given is not None
        assert answers is not None
        given.write(line + "\n")
        given.flush()
        ready, _, _ = select.select([answers], [], [], PATIENCE)
        answer = answers.readline() if ready else ""
        if not answer:
            self.__exit__()
        return answer


class Examination:
    """with Examination() as examined: examined.registry(); examined.outcome(key). Without an engine, as examine.py says."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder

    def __enter__(self) -> Examination:
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as open_now:
            log = open_now.enter_context((self.folder / LOG).open("a"))
            self._worker = open_now.enter_context(Worker("examine", log, {"VLLM_PLUGINS": "fxhlo"}))
            self._open = open_now.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def registry(self) -> dict[str, tuple[str, ...]]:
        """Every key of vLLM's registry, by what it is for."""
        return {title: tuple(keys) for title, keys in json.loads(self._worker.ask("registry")).items()}

    def outcome(self, key: str) -> Outcome:
        answer = self._worker.ask(str(self.folder / "examined" / key))
        return Outcome.of(json.loads(answer)) if answer else Outcome(key, "failed", "the process ended")


class Comparison:
    """with Comparison() as compared: compared.outcome(name). The models stay in `folder` and are made again only where they changed.

    eager: without an engine, as serve.py says.
    """

    def __init__(self, folder: Path = FOLDER, *, eager: bool = False) -> None:
        self.folder = folder
        self.eager = eager

    def __enter__(self) -> Comparison:
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as open_now:
            log = open_now.enter_context((self.folder / LOG).open("w"))
            self._reference = open_now.enter_context(Worker("reference", log, {"VLLM_PLUGINS": ""}))
            environment = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_PLUGINS": "fxhlo"}
            self._serve = open_now.enter_context(Worker("serve", log, environment, *["eager"] * self.eager))
            self._open = open_now.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def outcome(self, name: str) -> Outcome:
        """Makes the model, serves it, and compares. name: of the catalog."""
        folder = str(self.folder / name)
        if not self._reference.ask(folder):
            return Outcome(name, "no reference", "transformers' process ended")
        answer = self._serve.ask(folder)
        if not answer:
            return Outcome(name, "failed", f"the serving process ended, or gave no answer for {PATIENCE:.0f} s: {LOG}")
        return Outcome.of(json.loads(answer))
