"""Runs one vLLM engine in a process of its own, driven by `Engine` over a pipe.

`Engine` is the client: it starts the process with or without fxhlo, so that two engines are alive at once and are
measured in turn. As a program (`python -m fxhlo.tools.bench.engine`): arguments of `vllm.LLM` as JSON on the first
line of standard input, then one job a line; one line of JSON per answer on the standard output that it was started with.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import Any

from ...runtime.core.errors import FxhloError

HIDDEN = 'import sys\n\nsys.modules["libtpu"] = None\n'
"""`sitecustomize` of the peer's processes: vLLM's built-in platform for TPUs claims every process that can import libtpu."""


class BenchError(FxhloError):
    """A measurement failed."""


class Engine:
    """with Engine("fxhlo", arguments) as engine: engine.run(prompts, max_tokens) -> seconds."""

    def __init__(
        self,
        name: str,
        arguments: dict[str, object],
        *,
        fxhlo: bool,
        cache: Path | None = None,
        first: str = "",
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """fxhlo: with our plugin, else vLLM's own CPU backend. cache: the folder of fxhlo's and vLLM's caches. first: Python that runs before
        anything else in each of its processes. environment: variables beside those of this process."""
        self.name = name
        self._hidden = tempfile.TemporaryDirectory(prefix="fxhlo-bench-peer-")
        variables = variables_of(Path(self._hidden.name), fxhlo=fxhlo, cache=cache, first=first) | dict(environment)
        self._log = tempfile.TemporaryFile()
        self.started = perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fxhlo.tools.bench.engine"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=variables,
        )  # fmt: skip
        self._send(arguments)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        self._hidden.cleanup()

    def first_token(self) -> float:
        """Seconds from the start of the process to the first token of its first answer."""
        self._receive()
        return perf_counter() - self.started

    def run(self, prompts: list[list[int]], max_tokens: int) -> float:
        """Returns the seconds from the first prompt to the last token; with max_tokens 0, to the last embedding."""
        self._send({"prompts": prompts, "max_tokens": max_tokens})
        return self._receive()["seconds"]

    def _send(self, message: dict[str, object]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            said = self._log.read().decode(errors="replace").strip().splitlines()[-8:]
            raise BenchError(
                f"the engine of {self.name} ended:\n  " + "\n  ".join(said),
                next_step="correct what its last lines name, and measure again",
            )
        return json.loads(line)


def variables_of(folder: Path, *, fxhlo: bool, cache: Path | None = None, first: str = "") -> dict[str, str]:
    """The environment of an engine's processes. folder: which they look into for Python that runs first."""
    variables = {**os.environ, "VLLM_LOGGING_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    variables["VLLM_PLUGINS"] = "fxhlo" if fxhlo else ""
    variables.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB, as fxhlo's default
    if cache is not None:
        variables |= {"FXHLO_CACHE_DIR": str(cache / "fxhlo"), "VLLM_CACHE_ROOT": str(cache / "vllm")}
        variables["TORCHINDUCTOR_CACHE_DIR"] = str(cache / "inductor")
    if first or not fxhlo:
        (folder / "sitecustomize.py").write_text(first + ("" if fxhlo else HIDDEN))
        variables["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return variables


def main() -> None:
    """The server in the engine's process."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints to stdout
    arguments = json.loads(sys.stdin.readline())

    from vllm import LLM, SamplingParams

    llm = LLM(**arguments)
    pooling = arguments.get("runner") == "pooling"

    def answer(prompts: list[list[int]], max_tokens: int) -> float:
        begun = perf_counter()
        tokenized: list[Any] = [{"prompt_token_ids": prompt} for prompt in prompts]
        if pooling:
            llm.embed(tokenized, use_tqdm=False)
            return perf_counter() - begun
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        outputs = llm.generate(tokenized, params, use_tqdm=False)
        seconds = perf_counter() - begun
        if any(len(output.outputs[0].token_ids) != max_tokens for output in outputs):
            raise BenchError("an answer has another length than was asked for")
        return seconds

    answer([[1, 2, 3]], 1)
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps({"seconds": answer(job["prompts"], job["max_tokens"])}), file=out, flush=True)


if __name__ == "__main__":
    main()
